// Keeps finished pictures as files named by a random id. A picture is written under another name, made durable and
// renamed, so a reader never sees half of one, and what a crash left behind is swept at the next start.

public import Foundation
internal import Glibc

/// Why the store could not do something; `description` says what to look at.
public struct ImageStoreError: Error, Equatable, CustomStringConvertible {
    /// File or directory concerned.
    public let path: String
    /// What was tried, as in "cannot <operation> <path>".
    public let operation: String
    /// The system's error number.
    public let errno: Int32

    /// Whether the disk, or the user's share of it, is full.
    public var isDiskFull: Bool { errno == ENOSPC || errno == EDQUOT }

    /// What failed and why, in one sentence.
    public var description: String { "cannot \(operation) \(path): \(String(cString: strerror(errno)))" }
}

/// A directory of pictures.
public struct ImageStore: Sendable {
    /// The directory.
    public let directory: String

    private static let temporaryPrefix = "."
    private static let temporarySuffix = ".png.partial"

    /// Opens a store: makes the directory when it is missing, sweeps unfinished files, and checks that it can be written.
    ///
    /// - Throws: `ImageStoreError`.
    public init(directory: String) throws(ImageStoreError) {
        self.directory = directory
        try Self.makeDirectory(directory)
        try sweep()
        try checkWritable()
    }

    /// Writes a picture and returns its id once it is safe on the disk.
    ///
    /// Blocking.
    ///
    /// - Throws: `ImageStoreError`.
    public func save(_ png: [UInt8]) throws(ImageStoreError) -> UUID {
        let id = UUID()
        let temporary = temporaryPath(id)
        do {
            try write(png, to: temporary)
        } catch {
            unlink(temporary)
            throw error
        }
        guard rename(temporary, path(of: id)) == 0 else {
            let error = failure("rename", temporary)
            unlink(temporary)
            throw error
        }
        // The new name is durable only when the directory is.
        try synchronizeDirectory()
        return id
    }

    /// Where the picture of an id is kept, whether or not it exists.
    ///
    /// An id is a UUID, so the path stays inside.
    public func path(of id: UUID) -> String {
        "\(directory)/\(id.uuidString.lowercased()).png"
    }

    /// The bytes of a picture, or nil when there is none of that id.
    ///
    /// Blocking.
    ///
    /// - Throws: `ImageStoreError` when it is there and cannot be read.
    public func read(_ id: UUID) throws(ImageStoreError) -> [UInt8]? {
        let path = path(of: id)
        // Opening a named pipe would wait for a writer, and the daemon's end for the answer.
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else {
            if errno == ENOENT { return nil }
            throw failure("open", path)
        }
        defer { close(descriptor) }
        // A pipe that bears the name of a picture is none; it is what has no position.
        guard lseek(descriptor, 0, SEEK_CUR) == 0 else { return nil }
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 1 << 18)
        while true {
            let count = Glibc.read(descriptor, &chunk, chunk.count)
            if count < 0 && errno == EINTR { continue }
            guard count >= 0 else { throw failure("read", path) }
            if count == 0 { return bytes }
            bytes += chunk[..<count]
        }
    }

    private func temporaryPath(_ id: UUID) -> String {
        "\(directory)/\(Self.temporaryPrefix)\(id.uuidString.lowercased())\(Self.temporarySuffix)"
    }

    private func write(_ bytes: [UInt8], to path: String) throws(ImageStoreError) {
        let descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o644)
        guard descriptor >= 0 else { throw failure("create", path) }
        var done = 0
        var written = 0
        while done < bytes.count {
            written = bytes.withUnsafeBytes {
                Glibc.write(descriptor, $0.baseAddress?.advanced(by: done), $0.count - done)
            }
            if written < 0 && errno == EINTR { continue }
            if written < 0 { break }
            done += written
        }
        guard written >= 0, fsync(descriptor) == 0 else {
            let error = failure("write", path)
            close(descriptor)
            throw error
        }
        // Some file systems report a full disk only here.
        guard close(descriptor) == 0 else { throw failure("write", path) }
    }

    private func synchronizeDirectory() throws(ImageStoreError) {
        let descriptor = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { throw failure("open", directory) }
        defer { close(descriptor) }
        // EINVAL: the file system has nothing to synchronise for a directory.
        guard fsync(descriptor) == 0 || errno == EINVAL else { throw failure("write", directory) }
    }

    /// Removes what an interrupted write left.
    private func sweep() throws(ImageStoreError) {
        guard let stream = opendir(directory) else { throw failure("open", directory) }
        defer { closedir(stream) }
        while let entry = readdir(stream) {
            let name = withUnsafeBytes(of: entry.pointee.d_name) { bytes in
                String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name.hasPrefix(Self.temporaryPrefix), name.hasSuffix(Self.temporarySuffix) {
                unlink("\(directory)/\(name)")
            }
        }
    }

    /// Writes and removes a file now, so that a wrong owner shows at start and not after the first picture.
    private func checkWritable() throws(ImageStoreError) {
        let path = temporaryPath(UUID())
        defer { unlink(path) }
        try write([0], to: path)
    }

    private func failure(_ operation: String, _ path: String) -> ImageStoreError {
        ImageStoreError(path: path, operation: operation, errno: errno)
    }

    /// Makes a directory and those above it.
    private static func makeDirectory(_ path: String) throws(ImageStoreError) {
        var end = path.startIndex
        while end < path.endIndex {
            end = path[end...].dropFirst().firstIndex(of: "/") ?? path.endIndex
            // A parent that exists is not ours to judge; only the last step's failure counts.
            guard mkdir(String(path[..<end]), 0o755) == 0 || errno == EEXIST || end < path.endIndex else {
                throw ImageStoreError(path: path, operation: "make the directory", errno: errno)
            }
        }
    }
}

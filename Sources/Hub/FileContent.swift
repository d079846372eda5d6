// What is on the disk of a file, and its digest, which are always of the same bytes.

internal import Foundation

/// An open file that grows, or is only read.
struct FileContent {
    /// Bytes of it that have been read or written.
    private(set) var count = 0
    private var digest: FileDigest
    private let file: RepositoryFile
    private let path: String
    private let descriptor: CInt

    /// Opens what is to become a file of a repository, or is one; no link is followed.
    ///
    /// - Parameter flags: Of open(2).
    /// - Throws: `HubError.file`, as everything here.
    init(of file: RepositoryFile, at path: String, _ flags: CInt) throws {
        self.file = file
        self.path = path
        digest = FileDigest(file.checksum, size: file.size)
        descriptor = Foundation.open(path, flags | O_CLOEXEC | O_NOFOLLOW, 0o666)
        guard descriptor >= 0 else { throw Self.error(path) }
    }

    /// Whether all of the file is there and undamaged.
    var isRight: Bool { count == file.size && digest.digits == file.checksum.digits }

    /// Closes the file, after which it is of no use.
    func close() {
        _ = Foundation.close(descriptor)
    }

    /// Keeps other programs from writing the same file.
    func lock() throws {
        guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
            throw HubError.file(path: path, reason: "another program is downloading it")
        }
    }

    /// Takes in what is there, once; what is appended then comes behind it.
    mutating func read() throws {
        var block = [UInt8](repeating: 0, count: 1 << 20)
        while true {
            let count = Foundation.read(descriptor, &block, block.count)
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else { throw Self.error(path) }
            guard count > 0 else { return }
            block.withUnsafeBytes { digest.update(UnsafeRawBufferPointer(rebasing: $0[..<count])) }
            self.count += count
        }
    }

    /// Writes what comes next.
    mutating func append(_ bytes: UnsafeRawBufferPointer) throws {
        var rest = bytes[...]
        while !rest.isEmpty {
            let count = Foundation.write(descriptor, UnsafeRawBufferPointer(rebasing: rest).baseAddress, rest.count)
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else { throw Self.error(path) }
            rest = rest.dropFirst(count)
        }
        digest.update(bytes)
        count += bytes.count
    }

    /// Gives up all that is there.
    mutating func startOver() throws {
        guard ftruncate(descriptor, 0) == 0, lseek(descriptor, 0, SEEK_SET) == 0 else { throw Self.error(path) }
        (count, digest) = (0, FileDigest(file.checksum, size: file.size))
    }

    /// Gives the file its name, once it is on the disk.
    func keep(as destination: String) throws {
        guard fsync(descriptor) == 0, rename(path, destination) == 0 else { throw Self.error(destination) }
    }

    private static func error(_ path: String) -> HubError {
        let code = errno
        let advice = code == ENOSPC || code == EDQUOT ? "; free some room and run this again to go on from there" : ""
        return .file(path: path, reason: String(cString: strerror(code)) + advice)
    }
}

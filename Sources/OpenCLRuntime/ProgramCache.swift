// Built programs on disk, so that only the first start compiles. An entry holds everything its program was built from and a checksum;
// whatever is doubtful about it makes it a miss, and the source is compiled anew.

internal import CZlib
internal import Foundation
public import Logging
internal import Synchronization

/// Everything that a built program depends on.
struct ProgramKey: Sendable, Equatable {
    var source: String
    var options: String
    var platformName: String
    var platformVersion: String
    var deviceName: String
    var deviceVersion: String
    var driverVersion: String
    /// What a device of the same name may lack elsewhere: extensions, and the width of its vectors.
    var capabilities: String

    /// The ingredients one after another, each behind its length, so that different keys have different bytes.
    var bytes: [UInt8] {
        var bytes: [UInt8] = []
        for text in [
            source, options, platformName, platformVersion, deviceName, deviceVersion, driverVersion, capabilities,
        ] {
            bytes.append(littleEndian: UInt64(text.utf8.count))
            bytes.append(contentsOf: text.utf8)
        }
        return bytes
    }
}

extension ProgramKey {
    /// The key of a source, built with options for a device.
    init(source: String, options: String, device: Device) {
        self.source = source
        self.options = options
        platformName = device.platformName
        platformVersion = device.platformVersion
        deviceName = device.name
        deviceVersion = device.version
        driverVersion = device.driverVersion
        capabilities = "\(device.nativeFloatVectorWidth) " + device.extensions.sorted().joined(separator: " ")
    }
}

/// A directory of built programs.
///
/// Safe to use from several threads, and by several processes at once: an entry is written under a temporary name and renamed, so that readers
/// see all of it or nothing.
///
/// The key is kept in the entry and compared as a whole, so no two programs can be taken for each other, however similar their names.
public final class ProgramCache: Sendable {
    /// Where the entries are.
    public let directory: String
    private let byteLimit: Int
    private let logger: Logger
    private let hasWarned = Mutex(false)

    /// A cache in a directory, which is made when the first program is kept.
    ///
    /// - Parameter byteLimit: What all entries together may take; those used longest ago are removed beyond it.
    public init(directory: String, byteLimit: Int = 256 << 20, logger: Logger) {
        self.directory = directory
        self.byteLimit = byteLimit
        self.logger = logger
    }

    /// The entry of a key.
    func path(of key: ProgramKey) -> String {
        let bytes = key.bytes
        let name = String(checksum(bytes[...]), radix: 16) + "-" + String(bytes.count, radix: 16)
        return directory + "/" + name + Self.suffix
    }

    /// The binary that was kept for a key; nil if there is none or anything about it is doubtful.
    func binary(for key: ProgramKey) -> [UInt8]? {
        let path = path(of: key)
        do {
            let binary = try Entry.binary(in: readEntry(path), key: key.bytes)
            // Says when the entry was last used; access times are not kept by every mount.
            utimes(path, nil)
            return binary
        } catch {
            if case .doubtful(let reason) = error {
                logger.debug("kept program not used", metadata: ["file": "\(path)", "reason": "\(reason)"])
            }
            return nil
        }
    }

    /// Keeps a binary; a failure is logged, the first as a warning.
    func store(_ binary: [UInt8], for key: ProgramKey) {
        guard makeDirectory(directory) else { return warn("the directory cannot be made: \(lastError())") }
        let path = path(of: key)
        // mkstemp gives it to its owner alone and a name that no other process has.
        var template = Array("\(path).XXXXXX".utf8CString)
        let descriptor = mkstemp(&template)
        guard descriptor >= 0 else { return warn(lastError()) }
        let temporary = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        let failure = write(Entry.bytes(key: key.bytes, binary: binary), to: descriptor)
        close(descriptor)
        if let failure {
            unlink(temporary)
            return warn(failure)
        }
        guard rename(temporary, path) == 0 else {
            let reason = lastError()
            unlink(temporary)
            return warn(reason)
        }
        removeOldEntries(keeping: path)
    }

    // MARK: Files

    private static let suffix = ".program"

    fileprivate enum Miss: Error {
        case absent
        case doubtful(String)
    }

    private func readEntry(_ path: String) throws(Miss) -> [UInt8] {
        // Without O_NONBLOCK a named pipe would be waited for.
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else {
            throw errno == ENOENT || errno == ENOTDIR ? .absent : .doubtful(lastError())
        }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { throw .doubtful(lastError()) }
        guard status.st_mode & S_IFMT == S_IFREG, status.st_size <= byteLimit else {
            throw .doubtful("it is no file of a program's size")
        }
        // A driver runs what is in it.
        guard status.st_uid == geteuid(), status.st_mode & (S_IWGRP | S_IWOTH) == 0 else {
            throw .doubtful("others can write to it")
        }
        let size = Int(status.st_size)
        return [UInt8](unsafeUninitializedCapacity: size) { buffer, count in
            while count < size, let base = buffer.baseAddress {
                let got = read(descriptor, base + count, size - count)
                if got < 0, errno == EINTR { continue }
                // Fewer bytes than there were do not fit the lengths in the entry.
                if got <= 0 { break }
                count += got
            }
        }
    }

    /// Makes a directory for its owner alone, and those above it; `errno` says why not.
    private func makeDirectory(_ path: String) -> Bool {
        if mkdir(path, 0o700) == 0 || errno == EEXIST { return true }
        guard errno == ENOENT, let slash = path.lastIndex(of: "/"), slash > path.startIndex else { return false }
        return makeDirectory(String(path[..<slash])) && (mkdir(path, 0o700) == 0 || errno == EEXIST)
    }

    /// Writes everything, or returns why not.
    private func write(_ bytes: [UInt8], to descriptor: Int32) -> String? {
        bytes.withUnsafeBytes { buffer in
            var written = 0
            while written < buffer.count, let base = buffer.baseAddress {
                let count = Foundation.write(descriptor, base + written, buffer.count - written)
                if count < 0, errno == EINTR { continue }
                if count <= 0 { return lastError() }
                written += count
            }
            return nil
        }
    }

    /// Removes the entries used longest ago until the rest fits the limit, and what writers that were killed left behind.
    private func removeOldEntries(keeping newest: String) {
        var entries: [(path: String, bytes: Int, used: Int)] = []
        let now = time(nil)
        for name in (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []
        where name.contains(Self.suffix) {
            let path = directory + "/" + name
            var status = stat()
            guard lstat(path, &status) == 0, status.st_mode & S_IFMT == S_IFREG else { continue }
            if !name.hasSuffix(Self.suffix) {
                if status.st_mtim.tv_sec < now - 3600 { unlink(path) }
            } else {
                entries.append((path, Int(status.st_size), status.st_mtim.tv_sec))
            }
        }
        var total = entries.reduce(0) { $0 + $1.bytes }
        for entry in entries.sorted(by: { $0.used < $1.used }) where total > byteLimit && entry.path != newest {
            unlink(entry.path)
            total -= entry.bytes
        }
    }

    private func lastError() -> String { String(cString: strerror(errno)) }

    private func warn(_ reason: String) {
        let isFirst = hasWarned.withLock { warned in
            defer { warned = true }
            return !warned
        }
        logger.log(
            level: isFirst ? .warning : .debug,
            "built kernels cannot be kept, so that every start compiles them; see cache.directory in the configuration",
            metadata: ["directory": "\(directory)", "reason": "\(reason)"]
        )
    }

    // MARK: Format

    /// The bytes of a file: magic, format, CRC-32 of all that follows, length of the key, length of the binary, key, binary.
    ///
    /// Numbers are little-endian. The checksum guards against damage; who can write to the directory can write a right one.
    enum Entry {
        private static let magic = Array("DFSDPROG".utf8)
        /// To be raised when the layout or the way programs are built changes.
        private static let format: UInt32 = 1
        static let headerBytes = 32

        static func bytes(key: [UInt8], binary: [UInt8]) -> [UInt8] {
            var checked: [UInt8] = []
            checked.reserveCapacity(16 + key.count + binary.count)
            checked.append(littleEndian: UInt64(key.count))
            checked.append(littleEndian: UInt64(binary.count))
            checked += key
            checked += binary
            var bytes = magic
            bytes.append(littleEndian: format)
            bytes.append(littleEndian: checksum(checked[...]))
            return bytes + checked
        }

        fileprivate static func binary(in bytes: [UInt8], key: [UInt8]) throws(Miss) -> [UInt8] {
            guard bytes.count >= headerBytes, bytes.starts(with: magic) else { throw .doubtful("it is no entry") }
            func number<T: FixedWidthInteger>(_ offset: Int, _: T.Type) -> T {
                bytes[offset..<(offset + MemoryLayout<T>.size)].reversed().reduce(0) { $0 << 8 | T($1) }
            }
            guard number(8, UInt32.self) == format else { throw .doubtful("it has another format") }
            let lengths = (number(16, UInt64.self), number(24, UInt64.self))
            let binaryBytes = bytes.count - headerBytes - key.count
            guard binaryBytes > 0, lengths == (UInt64(key.count), UInt64(binaryBytes)) else {
                throw .doubtful("its lengths do not fit")
            }
            guard number(12, UInt32.self) == checksum(bytes[16...]) else { throw .doubtful("its checksum is wrong") }
            guard bytes[headerBytes...].starts(with: key) else { throw .doubtful("it is of another program") }
            return Array(bytes[(headerBytes + key.count)...])
        }
    }
}

/// CRC-32 as in PNG and gzip.
private func checksum(_ bytes: ArraySlice<UInt8>) -> UInt32 {
    bytes.withUnsafeBytes { buffer in
        // zlib takes at most 4 GiB at once; an entry is far smaller.
        UInt32(crc32_z(0, buffer.bindMemory(to: UInt8.self).baseAddress, buffer.count))
    }
}

extension [UInt8] {
    fileprivate mutating func append<T: FixedWidthInteger>(littleEndian number: T) {
        for byte in 0..<MemoryLayout<T>.size { append(UInt8(truncatingIfNeeded: number >> (8 * byte))) }
    }
}

// One file: fetched beside where it is to be, from where an earlier attempt ended, checked as a whole, and only then given its name.

internal import AsyncHTTPClient
internal import Foundation
internal import NIOCore
internal import NIOHTTP1

/// A file on its way to the disk.
struct FileDownload {
    let file: RepositoryFile
    /// Where it is to be.
    let destination: String

    init(_ file: RepositoryFile, into directory: String) {
        self.file = file
        destination = "\(directory)/\(file.path)"
    }

    /// Where it grows; named by its content, so that what is left of another version is not continued.
    private var incomplete: String { "\(destination).\(file.checksum.digits.prefix(12)).incomplete" }

    /// Bytes that are still to come: all, or what an earlier attempt left.
    var remainingBytes: Int {
        let attributes = try? FileManager.default.attributesOfItem(atPath: incomplete)
        return max(0, file.size - ((attributes?[.size] as? Int) ?? 0))
    }

    /// Whether it is there already, in full and undamaged.
    ///
    /// Reads the whole file if its size is right.
    func isThere() -> Bool {
        guard let attributes = try? FileManager.default.attributesOfItem(atPath: destination),
            attributes[.size] as? Int == file.size, attributes[.type] as? FileAttributeType == .typeRegular
        else { return false }
        var digest = FileDigest(file.checksum, size: file.size)
        guard let descriptor = try? Self.open(destination, O_RDONLY) else { return false }
        defer { close(descriptor) }
        return (try? read(descriptor, into: &digest)) == file.size && digest.digits == file.checksum.digits
    }

    /// Fetches the file.
    ///
    /// - Parameter progress: Is told the bytes of the file that are there, whenever there are more, or fewer after a fresh start.
    /// - Throws: `HubError`.
    func callAsFunction(
        from address: URL,
        by client: HubClient,
        progress: (Int) -> Void
    ) async throws {
        try makeDirectory()
        let descriptor = try Self.open(incomplete, O_RDWR | O_CREAT)
        defer { close(descriptor) }
        guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
            throw HubError.file(path: incomplete, reason: "another program is downloading it")
        }
        // What was left may be damaged, and so may what comes; the second time it is all new.
        for attempt in 0... {
            var digest = FileDigest(file.checksum, size: file.size)
            var count = try read(descriptor, into: &digest)
            if count > file.size {
                (count, digest) = (try startOver(descriptor), FileDigest(file.checksum, size: file.size))
            }
            progress(count)
            // What comes again after a fresh start is no progress, or a server without ranges that always breaks off would be asked for ever.
            var most = count
            let damage: String
            do {
                try await client.retrying(address) { progressed in
                    try await fetch(address, by: client, descriptor, &count, &digest) { count in
                        if count > most {
                            most = count
                            progressed()
                        }
                        progress(count)
                    }
                }
                if digest.digits == file.checksum.digits { break }
                damage = "its checksum is wrong"
            } catch let error as WrongLength {
                damage = error.reason
            }
            progress(try startOver(descriptor))
            guard attempt == 0 else { throw HubError.damaged(path: file.path, reason: damage) }
        }
        guard fsync(descriptor) == 0, rename(incomplete, destination) == 0 else { throw Self.error(destination) }
    }

    /// The server has another length in mind than the listing.
    private struct WrongLength: Error {
        let reason: String
    }

    /// One request: adds what comes to the file.
    ///
    /// - Throws: `HubClient.Transient` where another might do better, `WrongLength`, `HubError`.
    private func fetch(
        _ address: URL,
        by client: HubClient,
        _ descriptor: CInt,
        _ count: inout Int,
        _ digest: inout FileDigest,
        progress: (Int) -> Void
    ) async throws {
        guard count < file.size else { return }
        let answer = try await client.get(address, from: count)
        if count > 0, answer.status != 206 || !answer.continues(at: count, of: file.size) {
            // It knows no ranges, or others than were asked for; or it is the page of a network that wants a login first, for which what has come is
            // not given up.
            if answer.status == 200, let text = answer.headers.first(name: "Content-Length"), Int(text) != file.size {
                throw HubClient.Transient(reason: "the server sends \(text) bytes where the file has \(file.size)")
            }
            (count, digest) = (try startOver(descriptor), FileDigest(file.checksum, size: file.size))
            guard answer.status == 200 else {
                throw HubClient.Transient(reason: "the server sends another part of the file")
            }
        }
        guard answer.status != 416 else { throw HubClient.Transient(reason: "the server has no such part of the file") }
        if let text = answer.headers.first(name: "Content-Length"), Int(text) != file.size - count {
            throw WrongLength(reason: "the server sends \(text) bytes where \(file.size - count) are to come")
        }
        do {
            for try await buffer in answer.body {
                let bytes = buffer.readableBytes
                guard count + bytes <= file.size else {
                    throw WrongLength(reason: "the server sends more than the \(file.size) bytes there are")
                }
                try buffer.withUnsafeReadableBytes { bytes in
                    try write(bytes, to: descriptor)
                    digest.update(bytes)
                }
                count += bytes
                progress(count)
            }
        } catch let error as WrongLength {
            throw error
        } catch let error as HubError {
            throw error
        } catch let error as CancellationError {
            throw error
        } catch {
            throw HubClient.Transient(reason: HubClient.reason(error))
        }
        guard count == file.size else { throw HubClient.Transient(reason: "the connection broke") }
    }

    // MARK: The file

    private func makeDirectory() throws {
        let directory = (destination as NSString).deletingLastPathComponent
        do {
            try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        } catch {
            throw HubError.file(path: directory, reason: "it cannot be made: \(error.localizedDescription)")
        }
    }

    private static func open(_ path: String, _ flags: CInt) throws -> CInt {
        let descriptor = Foundation.open(path, flags | O_CLOEXEC | O_NOFOLLOW, 0o666)
        guard descriptor >= 0 else { throw error(path) }
        return descriptor
    }

    /// Takes the whole of a file into a digest, and is then at its end.
    private func read(_ descriptor: CInt, into digest: inout FileDigest) throws -> Int {
        guard lseek(descriptor, 0, SEEK_SET) == 0 else { throw Self.error(destination) }
        var block = [UInt8](repeating: 0, count: 1 << 20)
        var total = 0
        while true {
            let count = Foundation.read(descriptor, &block, block.count)
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else { throw Self.error(destination) }
            guard count > 0 else { return total }
            block.withUnsafeBytes { digest.update(UnsafeRawBufferPointer(rebasing: $0[..<count])) }
            total += count
        }
    }

    private func write(_ bytes: UnsafeRawBufferPointer, to descriptor: CInt) throws {
        var rest = bytes[...]
        while !rest.isEmpty {
            let count = Foundation.write(descriptor, UnsafeRawBufferPointer(rebasing: rest).baseAddress, rest.count)
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else { throw Self.error(incomplete) }
            rest = rest.dropFirst(count)
        }
    }

    private func startOver(_ descriptor: CInt) throws -> Int {
        guard ftruncate(descriptor, 0) == 0, lseek(descriptor, 0, SEEK_SET) == 0 else { throw Self.error(incomplete) }
        return 0
    }

    private static func error(_ path: String) -> HubError {
        let code = errno
        let advice = code == ENOSPC || code == EDQUOT ? "; free some room and run this again to go on from there" : ""
        return .file(path: path, reason: String(cString: strerror(code)) + advice)
    }
}

extension HubClient.Answer {
    /// Whether it begins at an offset and goes on to the end of a file of so many bytes: RFC 9110, 14.4.
    fileprivate func continues(at offset: Int, of size: Int) -> Bool {
        guard let range = headers.first(name: "Content-Range"),
            let match = range.wholeMatch(of: /bytes ([0-9]+)-([0-9]+)\/([0-9]+|\*)/)
        else { return false }
        return Int(match.1) == offset && Int(match.2) == size - 1 && (match.3 == "*" || Int(match.3) == size)
    }
}

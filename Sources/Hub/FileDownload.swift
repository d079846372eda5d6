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
            attributes[.size] as? Int == file.size, attributes[.type] as? FileAttributeType == .typeRegular,
            var content = try? FileContent(of: file, at: destination, O_RDONLY)
        else { return false }
        defer { content.close() }
        return (try? content.read()) != nil && content.isRight
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
        var content = try FileContent(of: file, at: incomplete, O_RDWR | O_CREAT)
        defer { content.close() }
        try content.lock()
        try content.read()
        if content.count > file.size { try content.startOver() }
        // What was left may be damaged, and so may what comes; the second time it is all new.
        for attempt in 0... {
            progress(content.count)
            // What comes again after a fresh start is no progress, or a server without ranges that always breaks off would be asked for ever.
            var most = content.count
            let damage: String
            do {
                try await client.retrying(address) { progressed in
                    try await fetch(address, by: client, into: &content) { count in
                        if count > most {
                            most = count
                            progressed()
                        }
                        progress(count)
                    }
                }
                if content.isRight { break }
                damage = "its checksum is wrong"
            } catch let error as WrongLength {
                damage = error.reason
            }
            try content.startOver()
            guard attempt == 0 else { throw HubError.damaged(path: file.path, reason: damage) }
        }
        try content.keep(as: destination)
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
        into content: inout FileContent,
        progress: (Int) -> Void
    ) async throws {
        guard content.count < file.size else { return }
        let answer = try await client.get(address, from: content.count)
        let length = answer.headers.first(name: "Content-Length")
        if content.count > 0, answer.status != 206 || !answer.continues(at: content.count, of: file.size) {
            // It knows no ranges, or others than were asked for; or it is the page of a network that wants a login first, for which what has come is
            // not given up.
            if answer.status == 200, let length, Int(length) != file.size {
                throw HubClient.Transient(reason: "the server sends \(length) bytes where the file has \(file.size)")
            }
            try content.startOver()
            guard answer.status == 200 else {
                throw HubClient.Transient(reason: "the server sends another part of the file")
            }
        }
        guard answer.status != 416 else { throw HubClient.Transient(reason: "the server has no such part of the file") }
        let remaining = file.size - content.count
        if let length, Int(length) != remaining {
            throw WrongLength(reason: "the server sends \(length) bytes where \(remaining) are to come")
        }
        do {
            for try await buffer in answer.body {
                guard content.count + buffer.readableBytes <= file.size else {
                    throw WrongLength(reason: "the server sends more than the \(file.size) bytes there are")
                }
                try buffer.withUnsafeReadableBytes { try content.append($0) }
                progress(content.count)
            }
        } catch  where error is WrongLength || error is HubError || error is CancellationError {
            throw error
        } catch {
            throw HubClient.Transient(reason: HubClient.reason(error))
        }
        guard content.count == file.size else { throw HubClient.Transient(reason: "the connection broke") }
    }

    private func makeDirectory() throws {
        let directory = (destination as NSString).deletingLastPathComponent
        do {
            try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        } catch {
            throw HubError.file(path: directory, reason: "it cannot be made: \(error.localizedDescription)")
        }
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

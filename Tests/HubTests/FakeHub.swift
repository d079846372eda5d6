// A hub on this machine that misbehaves as a test wants, down to the bytes on the wire.

import Crypto
import Foundation
import JSON
import NIOCore
import NIOPosix
import Synchronization
import TestSupport

@testable import Hub

/// A server that answers every request with bytes.
final class RawServer: Sendable {
    struct Request: Sendable {
        let method: String
        let target: String
        /// By their names in lower case.
        let headers: [String: String]

        /// The first byte that is wanted.
        var offset: Int? {
            headers["range"].flatMap { $0.wholeMatch(of: /bytes=([0-9]+)-/) }.flatMap { Int($0.1) }
        }
    }

    struct Reply: Sendable {
        var bytes: [UInt8]
        /// What becomes of the connection then.
        var end = End.stays

        enum End: Sendable { case stays, closes, hangs }

        /// A whole answer.
        init(
            _ status: Int,
            _ headers: [(String, String)] = [],
            body: [UInt8] = [],
            length: Int? = nil,
            end: End = .stays
        ) {
            var head = "HTTP/1.1 \(status) Whatever\r\n"
            for (name, value) in headers { head += "\(name): \(value)\r\n" }
            head += "Content-Length: \(length ?? body.count)\r\n\r\n"
            bytes = Array(head.utf8) + body
            self.end = end
        }
    }

    private let channel: any Channel
    private let log: Log
    let port: Int

    init(_ answer: @escaping @Sendable (Request) -> Reply) async throws {
        let log = Log()
        channel = try await ServerBootstrap(group: .singletonMultiThreadedEventLoopGroup)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .childChannelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(
                        Handler {
                            log.add($0); return answer($0)
                        }
                    )
                }
            }
            .bind(host: "127.0.0.1", port: 0).get()
        port = channel.localAddress?.port ?? 0
        self.log = log
    }

    private final class Log: Sendable {
        let requests = Mutex<[Request]>([])
        func add(_ request: Request) { requests.withLock { $0.append(request) } }
    }

    /// All that came so far.
    var received: [Request] { log.requests.withLock { $0 } }
    var address: String { "http://127.0.0.1:\(port)" }

    func close() async { try? await channel.close().get() }

    private final class Handler: ChannelInboundHandler {
        typealias InboundIn = ByteBuffer
        typealias OutboundOut = ByteBuffer
        private let answer: @Sendable (Request) -> Reply
        private var text = ""

        init(_ answer: @escaping @Sendable (Request) -> Reply) { self.answer = answer }

        func channelRead(context: ChannelHandlerContext, data: NIOAny) {
            text += String(buffer: unwrapInboundIn(data))
            while let end = text.range(of: "\r\n\r\n") {
                let lines = text[..<end.lowerBound].components(separatedBy: "\r\n")
                text = String(text[end.upperBound...])
                let words = lines[0].split(separator: " ").map(String.init)
                var headers: [String: String] = [:]
                for line in lines.dropFirst() {
                    let parts = line.split(separator: ":", maxSplits: 1).map { $0.trimmingCharacters(in: .whitespaces) }
                    headers[parts[0].lowercased()] = parts.count > 1 ? parts[1] : ""
                }
                let reply = answer(Request(method: words[0], target: words[1], headers: headers))
                context.writeAndFlush(wrapOutboundOut(ByteBuffer(bytes: reply.bytes)), promise: nil)
                if reply.end == .closes { context.close(promise: nil) }
            }
        }
    }
}

/// A hub with one repository, `owner/model`.
final class FakeHub: Sendable {
    /// How one request for a file is answered.
    enum Behaviour: Sendable {
        case well
        /// The connection ends after so many bytes of what was asked for.
        case breaks(after: Int)
        /// It stays open and silent.
        case hangs(after: Int)
        /// Whatever range is asked for, all of it.
        case ignoresRanges
        /// Likewise, and it ends after so many bytes.
        case ignoresRangesAndBreaks(after: Int)
        /// Something else in its place.
        case page
        /// Another part than was asked for.
        case wrongRange
        /// A length that is not the file's.
        case lies(length: Int)
        /// In chunks, with more bytes than there are.
        case tooMuch
        /// The right number of wrong bytes.
        case wrong
        case status(Int, [(String, String)])
        case redirects(to: String)
    }

    static let commit = String(repeating: "c", count: 40)
    let files: [String: [UInt8]]
    private let behaviours: Mutex<[String: [Behaviour]]>
    private let server: Mutex<RawServer?> = Mutex(nil)

    /// - Parameter behaviours: For each file, how requests for it are answered, one after another; then well.
    init(_ files: [String: [UInt8]], _ behaviours: [String: [Behaviour]] = [:]) async throws {
        self.files = files
        self.behaviours = Mutex(behaviours)
        let made = try await RawServer { [weak self] in self?.answer($0) ?? .init(500) }
        server.withLock { $0 = made }
    }

    var running: RawServer {
        get throws {
            guard let server = server.withLock({ $0 }) else { throw CancellationError() }
            return server
        }
    }

    /// Requests for a file, by what they asked for.
    func requests(for path: String) throws -> [RawServer.Request] {
        try running.received.filter { $0.target.hasSuffix("/resolve/\(Self.commit)/\(path)") }
    }

    func endpoint(_ environment: [String: String] = [:]) throws -> HubEndpoint {
        try HubEndpoint(environment: environment.merging(["HF_ENDPOINT": running.address]) { $1 })
    }

    private func answer(_ request: RawServer.Request) -> RawServer.Reply {
        if request.target.hasPrefix("/api/models/owner/model/revision/main?blobs=true") {
            return .init(200, body: Array(listing.serialized.utf8))
        }
        let prefix = "/owner/model/resolve/\(Self.commit)/"
        let target = request.target.prefix { $0 != "?" }
        guard target.hasPrefix(prefix), let path = String(target.dropFirst(prefix.count)).removingPercentEncoding,
            let content = files[path]
        else { return .init(404, [("X-Error-Message", "Entry not found")]) }
        let behaviour = behaviours.withLock { behaviours -> Behaviour in
            guard let next = behaviours[path]?.first else { return .well }
            behaviours[path]?.removeFirst()
            return next
        }
        return Self.reply(behaviour, content, from: request.offset)
    }

    static func reply(_ behaviour: Behaviour, _ content: [UInt8], from offset: Int?) -> RawServer.Reply {
        func part(_ offset: Int?) -> (Int, [(String, String)], [UInt8]) {
            guard let offset else { return (200, [], content) }
            let range = "bytes \(offset)-\(content.count - 1)/\(content.count)"
            return (206, [("Content-Range", range)], Array(content.dropFirst(offset)))
        }
        let (status, headers, body) = part(offset)
        switch behaviour {
        case .well: return .init(status, headers, body: body)
        case .breaks(let count):
            return .init(status, headers, body: Array(body.prefix(count)), length: body.count, end: .closes)
        case .hangs(let count):
            return .init(status, headers, body: Array(body.prefix(count)), length: body.count, end: .hangs)
        case .ignoresRanges: return .init(200, body: content)
        case .ignoresRangesAndBreaks(let count):
            return .init(200, body: Array(content.prefix(count)), length: content.count, end: .closes)
        case .page: return .init(200, body: Array("<html>Log in</html>".utf8))
        case .wrongRange:
            let (status, headers, body) = part(1)
            return .init(status, headers, body: body)
        case .lies(let length): return .init(status, headers, body: body, length: length, end: .closes)
        case .tooMuch:
            var reply = RawServer.Reply(200, [], end: .closes)
            let more = body + [1]
            reply.bytes = Array("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".utf8)
            reply.bytes += Array("\(String(more.count, radix: 16))\r\n".utf8) + more + Array("\r\n0\r\n\r\n".utf8)
            return reply
        case .wrong: return .init(status, headers, body: body.map { $0 ^ 1 })
        case .status(let code, let headers): return .init(code, headers)
        case .redirects(let target): return .init(302, [("Location", target)])
        }
    }

    private var listing: JSONValue {
        let siblings = files.sorted { $0.key < $1.key }.map { path, content -> JSONValue in
            func digits(_ bytes: some Sequence<UInt8>) -> JSONValue {
                .string(bytes.map { String(format: "%02x", $0) }.joined())
            }
            let blob = digits(Insecure.SHA1.hash(data: Array("blob \(content.count)\0".utf8) + content))
            var members: JSONObject = ["rfilename": .string(path), "size": JSONValue(content.count), "blobId": blob]
            // As large files are kept.
            if content.count > 1000 {
                members["blobId"] = .string(String(repeating: "0", count: 40))
                members["lfs"] = ["sha256": digits(SHA256.hash(data: content)), "size": JSONValue(content.count)]
            }
            return .object(members)
        }
        return ["id": "owner/model", "sha": .string(Self.commit), "siblings": .array(siblings)]
    }
}

extension TemporaryDirectory {
    /// Every file below it, with its content.
    var contents: [String: [UInt8]] {
        var result: [String: [UInt8]] = [:]
        for case let name as String in FileManager.default.enumerator(atPath: path) ?? .init() {
            let attributes = try? FileManager.default.attributesOfItem(atPath: path + "/" + name)
            guard attributes?[.type] as? FileAttributeType == .typeRegular else { continue }
            result[name] = FileManager.default.contents(atPath: path + "/" + name).map { Array($0) }
        }
        return result
    }
}

// Requests to a hub: where it is, who asks, and redirects. Files are handed out by other hosts than the hub, which redirects to them; these must not
// see the token, so redirects are followed here and not by the library, whose rules are its own.

internal import AsyncHTTPClient
public import Foundation
internal import JSON
internal import NIOCore
internal import NIOFoundationCompat
internal import NIOHTTP1
internal import NIOPosix

/// Where a hub is, and who asks.
public struct HubEndpoint: Sendable, Equatable {
    /// The hub's address, without a slash at its end.
    public let url: URL
    /// Sent to the hub itself; nil asks as nobody.
    let token: String?

    /// The hub and the token that the environment names, by the variables of the hub's own client: `HF_ENDPOINT`, `HF_TOKEN`, else the file
    /// `HF_TOKEN_PATH`, else `token` in `HF_HOME`, else `~/.cache/huggingface/token`.
    ///
    /// - Throws: `HubError.badSetting`.
    public init(environment: [String: String] = ProcessInfo.processInfo.environment) throws(HubError) {
        func value(_ name: String) -> String? { environment[name].flatMap { $0.isEmpty ? nil : $0 } }
        var address = value("HF_ENDPOINT") ?? "https://huggingface.co"
        while address.hasSuffix("/") { address.removeLast() }
        guard let url = URL(string: address), ["http", "https"].contains(url.scheme), url.host() != nil,
            url.query() == nil, url.user() == nil
        else {
            throw .badSetting("HF_ENDPOINT: found \"\(address)\", allowed is an address such as https://huggingface.co")
        }
        self.url = url
        let home = value("HF_HOME") ?? value("HOME").map { $0 + "/.cache/huggingface" }
        let file = value("HF_TOKEN_PATH") ?? home.map { $0 + "/token" }
        let text = value("HF_TOKEN") ?? file.flatMap { try? String(contentsOfFile: $0, encoding: .utf8) }
        let token = text?.trimmingCharacters(in: .whitespacesAndNewlines)
        guard token?.utf8.allSatisfy({ 0x21...0x7E ~= $0 }) ?? true else {
            throw .badSetting("HF_TOKEN: a token has neither spaces nor letters beyond ASCII")
        }
        self.token = token.flatMap { $0.isEmpty ? nil : $0 }
    }

    /// The list of files.
    func listing(of repository: RepositoryName) throws(HubError) -> URL {
        try address("api/models/\(repository.path)/revision/\(Self.escaped(repository.revision))?blobs=true")
    }

    /// A file at a commit.
    func file(_ path: String, of repository: RepositoryName, commit: String) throws(HubError) -> URL {
        let steps = path.split(separator: "/").map { Self.escaped(String($0)) }.joined(separator: "/")
        return try address("\(repository.path)/resolve/\(commit)/\(steps)")
    }

    /// The page for people.
    public func page(of repository: RepositoryName) -> String { "\(url.absoluteString)/\(repository.path)" }

    private func address(_ path: String) throws(HubError) -> URL {
        guard let result = URL(string: "\(url.absoluteString)/\(path)") else {
            throw .badSetting("\(url.absoluteString)/\(path) is no address")
        }
        return result
    }

    /// A step of a path: what RFC 3986 calls unreserved stays.
    private static func escaped(_ step: String) -> String {
        let unreserved = CharacterSet(
            charactersIn: "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
        )
        return step.addingPercentEncoding(withAllowedCharacters: unreserved) ?? step
    }
}

/// How patient a client is.
public struct Patience: Sendable {
    /// After which nothing more is expected of a server that says nothing.
    public var silence = Duration.seconds(60)
    /// Attempts in a row that bring nothing, after which it is given up.
    public var attempts = 6
    /// Before the second attempt; doubled before each one after it.
    public var firstPause = Duration.seconds(1)
    /// The longest pause, whatever a server wishes.
    public var longestPause = Duration.seconds(120)

    /// The usual patience.
    public init() {}

    /// The pause after so many attempts in a row, at least 1, that brought nothing.
    func pause(after failures: Int, asked: Int?) -> Duration {
        min(asked.map { .seconds($0) } ?? firstPause * (1 << min(failures - 1, 16)), longestPause)
    }
}

/// Asks a hub.
struct HubClient: Sendable {
    let endpoint: HubEndpoint
    let patience: Patience
    private let client: HTTPClient
    private static let mostRedirects = 10

    private init(_ endpoint: HubEndpoint, _ patience: Patience) {
        self.endpoint = endpoint
        self.patience = patience
        let silence = TimeAmount.nanoseconds(Int64(patience.silence / .nanoseconds(1)))
        var configuration = HTTPClient.Configuration(
            redirectConfiguration: .disallow,
            timeout: .init(connect: min(silence, .seconds(30)), read: silence)
        )
        configuration.httpVersion = .http1Only
        // Attempts and pauses are counted here.
        configuration.connectionPool.retryConnectionEstablishment = false
        client = HTTPClient(eventLoopGroupProvider: .singleton, configuration: configuration)
    }

    /// Runs `body` with a client that is closed afterwards, whatever comes of it.
    static func with<Result>(
        _ endpoint: HubEndpoint,
        _ patience: Patience,
        _ body: (HubClient) async throws -> Result
    ) async throws -> Result {
        let client = HubClient(endpoint, patience)
        let result: Swift.Result<Result, any Error>
        do {
            result = .success(try await body(client))
        } catch {
            result = .failure(error)
        }
        // Nothing is lost with a connection that does not close.
        try? await client.client.shutdown()
        return try result.get()
    }

    /// An answer that was not a redirect.
    struct Answer {
        let status: Int
        let headers: HTTPHeaders
        let body: HTTPClientResponse.Body
    }

    /// Something that might go better another time; with the seconds that the server asks to wait.
    struct Transient: Error {
        let reason: String
        var seconds: Int?
    }

    /// Sends a GET and follows redirects.
    ///
    /// - Parameter offset: The first byte that is wanted; 0 for all.
    /// - Throws: `HubError.refused`, `Transient`.
    func get(_ address: URL, from offset: Int = 0) async throws -> Answer {
        var address = address
        for _ in 0...Self.mostRedirects {
            var request = HTTPClientRequest(url: address.absoluteString)
            request.headers.add(name: "User-Agent", value: "diffused")
            // What is compressed on the way has another length than the listing says.
            request.headers.add(name: "Accept-Encoding", value: "identity")
            if offset > 0 { request.headers.add(name: "Range", value: "bytes=\(offset)-") }
            if let token = endpoint.token, address.origin == endpoint.url.origin {
                request.headers.add(name: "Authorization", value: "Bearer \(token)")
            }
            let response: HTTPClientResponse
            do {
                response = try await client.execute(request, timeout: .hours(24 * 7))
            } catch let error as CancellationError {
                throw error
            } catch {
                throw Transient(reason: Self.reason(error))
            }
            let status = Int(response.status.code)
            switch status {
            case 301, 302, 303, 307, 308:
                guard let location = response.headers.first(name: "Location"),
                    let next = URL(string: location, relativeTo: address)?.absoluteURL,
                    ["http", "https"].contains(next.scheme), next.host() != nil
                else { throw refusal(status, address, "it redirects to nowhere") }
                guard address.scheme == "http" || next.scheme == "https" else {
                    throw refusal(status, address, "it redirects to an address that is not encrypted")
                }
                address = next
            case 200, 206, 416:
                return Answer(status: status, headers: response.headers, body: response.body)
            case 408, 429, 500...599:
                let seconds = response.headers.first(name: "Retry-After").flatMap { Int($0) }
                throw Transient(reason: "the server answers \(status)", seconds: seconds.map { max($0, 0) })
            default:
                throw refusal(status, address, response.headers.first(name: "X-Error-Message").map(Self.printable))
            }
        }
        throw refusal(302, address, "it redirects more than \(Self.mostRedirects) times")
    }

    private func refusal(_ status: Int, _ address: URL, _ reason: String?) -> HubError {
        // Queries hold signatures, which are no one's business.
        var parts = URLComponents(url: address, resolvingAgainstBaseURL: false)
        parts?.query = nil
        return .refused(status: status, address: parts?.string ?? address.path(), reason: reason)
    }

    /// The files of a repository.
    ///
    /// - Throws: `HubError`.
    func repository(_ name: RepositoryName) async throws -> Repository {
        let address = try endpoint.listing(of: name)
        let bytes = try await retrying(address) { _ in
            let answer = try await get(address)
            do {
                return Array(buffer: try await answer.body.collect(upTo: 64 << 20))
            } catch is NIOTooManyBytesError {
                throw HubError.badListing("it is longer than 64 MiB")
            } catch {
                throw Transient(reason: Self.reason(error))
            }
        }
        let document: JSONValue
        do {
            document = try JSONValue(parsing: bytes)
        } catch {
            throw HubError.badListing("it is no JSON; HF_ENDPOINT may be no hub")
        }
        return try Repository(document)
    }

    /// Does something until it works, with pauses that grow.
    ///
    /// - Parameter body: Is given what it calls when it got on, so that attempts count anew.
    /// - Throws: `HubError.unreachable`, and what `body` throws but `Transient`.
    func retrying<Result>(
        _ address: URL,
        _ body: (_ progressed: () -> Void) async throws -> Result
    ) async throws -> Result {
        var failures = 0
        while true {
            do {
                return try await body { failures = 0 }
            } catch let error as Transient {
                failures += 1
                guard failures < patience.attempts else {
                    throw HubError.unreachable(
                        address: address.absoluteString,
                        attempts: failures,
                        reason: error.reason
                    )
                }
                try await Task.sleep(for: patience.pause(after: failures, asked: error.seconds))
            }
        }
    }

    /// What went wrong with a connection, for people.
    static func reason(_ error: any Error) -> String {
        switch error {
        case let error as HTTPClientError where error == .readTimeout || error == .deadlineExceeded:
            "the server stopped answering"
        case let error as HTTPClientError where error == .connectTimeout: "the connection took too long"
        case let error as HTTPClientError where error == .remoteConnectionClosed: "the connection broke"
        case HTTPParserError.invalidEOFState: "the connection broke"
        case let error as IOError: String(cString: strerror(error.errnoCode))
        case let error as NIOConnectionError:
            error.connectionErrors.first.map { reason($0.error) } ?? "\(error.host) has no address"
        default: printable("\(error)")
        }
    }

    private static func printable(_ text: String) -> String {
        String(text.unicodeScalars.filter { $0.properties.generalCategory != .control }.prefix(300).map(Character.init))
    }
}

extension URL {
    /// Scheme, host and port: what a token is for.
    fileprivate var origin: [String] {
        let scheme = scheme?.lowercased() ?? ""
        return [scheme, host()?.lowercased() ?? "", String(port ?? (scheme == "https" ? 443 : 80))]
    }
}

// What is wrong with a configuration, said so that the person who wrote it can go to the place and mend it.

/// A mistake in a configuration file or in an environment variable that overrides it.
public struct ConfigurationError: Error, Equatable, CustomStringConvertible {
    /// Where the mistake is.
    public enum Origin: Equatable, Sendable {
        /// A place in a file. Line and column count from 1; a column counts characters.
        case file(String, line: Int, column: Int)
        /// A file as a whole: it cannot be read, or is no YAML file at all.
        case wholeFile(String)
        /// An environment variable.
        case environment(String)
    }

    /// Where the mistake is.
    public let origin: Origin
    /// The key concerned, with its section (`server.port`); nil when the mistake is not about one key.
    public let key: String?
    /// What was found, and what is allowed.
    public let reason: String

    /// An error from its parts.
    public init(origin: Origin, key: String? = nil, reason: String) {
        self.origin = origin
        self.key = key
        self.reason = reason
    }

    /// An error at a place in a file.
    init(file: String, at position: YAMLPosition, key: String? = nil, reason: String) {
        self.init(origin: .file(file, line: position.line, column: position.column), key: key, reason: reason)
    }

    /// `file:line:column: key: reason`, the form editors and terminals make clickable.
    public var description: String {
        let place =
            switch origin {
            case .file(let file, let line, let column): "\(file):\(line):\(column)"
            case .wholeFile(let file): file
            case .environment(let name): "environment variable \(name)"
            }
        guard let key else { return "\(place): \(reason)" }
        return "\(place): \(key): \(reason)"
    }
}

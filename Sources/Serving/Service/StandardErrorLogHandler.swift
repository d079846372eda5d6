// Log lines on standard error: with a time for people, or, under systemd, without one and with the priority prefix that
// the journal takes apart. Reference: sd-daemon(3).

public import Foundation
internal import Glibc
public import Logging

/// Writes each message as one line.
public struct StandardErrorLogHandler: LogHandler {
    /// How a line begins.
    public enum Style: Sendable {
        /// Time and level.
        case terminal
        /// `<N>`, a syslog priority; the journal adds the time.
        case journal
    }

    /// Least level that is written.
    public var logLevel: Logger.Level
    /// What every message of this logger carries.
    public var metadata: Logger.Metadata = [:]
    /// What the context of a message adds.
    public var metadataProvider: Logger.MetadataProvider?
    private let style: Style

    /// A handler for one logger.
    public init(level: Logger.Level, style: Style) {
        logLevel = level
        self.style = style
    }

    /// The style that fits where standard error goes.
    public static func style(environment: [String: String] = ProcessInfo.processInfo.environment) -> Style {
        // systemd names the journal's socket here, by device and inode, so that a redirected stream is not taken for it.
        guard let stream = environment["JOURNAL_STREAM"] else { return .terminal }
        guard let target = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/fd/2"),
            let inode = stream.split(separator: ":").last
        else { return .terminal }
        return target == "socket:[\(inode)]" ? .journal : .terminal
    }

    /// One value of the metadata every message carries.
    public subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    /// Writes a message.
    public func log(event: LogEvent) {
        // One call a line, so that lines of several threads stay whole. A terminal that is gone is no reason to stop.
        let line = Array((line(for: event, at: Date()) + "\n").utf8)
        _ = Glibc.write(STDERR_FILENO, line, line.count)
    }

    /// The line of a message.
    func line(for event: LogEvent, at date: Date) -> String {
        var all = metadataProvider?.get() ?? [:]
        all.merge(metadata) { _, new in new }
        all.merge(event.metadata ?? [:]) { _, new in new }
        if let error = event.error { all["error"] = "\(error)" }
        var text = event.message.description
        for (key, value) in all.sorted(by: { $0.key < $1.key }) where !key.hasPrefix("hb.") {
            text += " \(key)=\(Self.quoted(value.description))"
        }
        // A journal entry is one line; so is one on a terminal.
        text = text.replacing("\n", with: "\\n").replacing("\r", with: "\\r")
        return switch style {
        case .terminal: "\(date.formatted(.iso8601)) \(event.level.rawValue) \(text)"
        case .journal: "<\(event.level.syslogPriority)>\(text)"
        }
    }

    /// A value with spaces is quoted, so that the line can be taken apart.
    private static func quoted(_ value: String) -> String {
        value.contains(" ") || value.isEmpty ? "\"\(value.replacing("\"", with: "\\\""))\"" : value
    }
}

extension Logger.Level {
    /// The priority of syslog(3).
    fileprivate var syslogPriority: Int {
        switch self {
        case .trace, .debug: 7
        case .info: 6
        case .notice: 5
        case .warning: 4
        case .error: 3
        case .critical: 2
        }
    }
}

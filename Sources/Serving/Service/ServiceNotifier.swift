// Tells the service manager how the daemon is, by systemd's notification protocol: datagrams of `NAME=value` lines to the
// socket in `$NOTIFY_SOCKET`. Reference: sd_notify(3), sd_watchdog_enabled(3).

public import Foundation

/// A connection to the service manager.
public struct ServiceNotifier: Sendable {
    /// The socket: a path, or an abstract name that begins with `@`.
    let address: String
    /// Time after which the service manager gives the process up, when it watches at all.
    public let watchdogInterval: Duration?

    /// The service manager of the environment; nil when there is none.
    public init?(environment: [String: String] = ProcessInfo.processInfo.environment) {
        guard let address = environment["NOTIFY_SOCKET"], address.hasPrefix("/") || address.hasPrefix("@") else {
            return nil
        }
        self.address = address
        // The watchdog may be meant for another process of the unit.
        let isForUs = environment["WATCHDOG_PID"].map { $0 == String(getpid()) } ?? true
        watchdogInterval = environment["WATCHDOG_USEC"]
            .flatMap { isForUs ? Int($0) : nil }
            .flatMap { $0 > 0 ? .microseconds($0) : nil }
    }

    /// Sends lines such as `READY=1` in one datagram.
    ///
    /// - Returns: whether the service manager took it. There is nothing to be done when it did not.
    @discardableResult
    public func send(_ lines: [String]) -> Bool {
        let descriptor = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { return false }
        defer { close(descriptor) }

        var target = sockaddr_un()
        target.sun_family = sa_family_t(AF_UNIX)
        // An abstract name begins with a zero byte and has no end mark; its length says where it ends.
        var name = Array(address.utf8)
        let isAbstract = name.first == UInt8(ascii: "@")
        if isAbstract { name[0] = 0 }
        guard name.count < MemoryLayout.size(ofValue: target.sun_path) else { return false }
        withUnsafeMutableBytes(of: &target.sun_path) { $0.copyBytes(from: name) }
        let pathOffset = MemoryLayout<sockaddr_un>.offset(of: \.sun_path) ?? MemoryLayout<sa_family_t>.size
        let length = socklen_t(pathOffset + name.count + (isAbstract ? 0 : 1))

        // A line break in a value would begin another line.
        let message = lines.map { $0.replacing("\n", with: " ") }.joined(separator: "\n")
        let bytes = Array(message.utf8)
        let sent = withUnsafePointer(to: &target) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                sendto(descriptor, bytes, bytes.count, Int32(MSG_NOSIGNAL), $0, length)
            }
        }
        return sent == bytes.count
    }
}

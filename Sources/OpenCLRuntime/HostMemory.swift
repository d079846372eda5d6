// What the machine's memory still has room for. Linux grants more than there is and ends a process when the pages are touched, so a device
// that shares the host's memory says nothing about it.

internal import Foundation

/// The host's memory as the kernel reports it.
public enum HostMemory {
    /// Bytes that can be taken without swapping: of the machine, or of the control group this process is confined to, whichever is less; nil
    /// where neither is known.
    ///
    /// - Parameter root: The directory with `proc` and `sys`, for tests.
    public static func availableBytes(root: String = "") -> Int? {
        let machine = fields(root + "/proc/meminfo")["MemAvailable:"].map { $0 * 1024 }
        return ([machine].compactMap { $0 } + controlGroups(root).compactMap(availableBytes(controlGroup:))).min()
    }

    /// The directories of the control group (version 2) of this process and of all above it: each can have a limit of its own.
    private static func controlGroups(_ root: String) -> [String] {
        let lines = text(root + "/proc/self/cgroup")?.split(separator: "\n") ?? []
        guard let line = lines.first(where: { $0.hasPrefix("0::/") }) else { return [] }
        var path = line.dropFirst(3)
        var directories: [String] = []
        while true {
            directories.append(root + "/sys/fs/cgroup" + path)
            guard let slash = path.lastIndex(of: "/"), path.count > 1 else { return directories }
            path = path[..<slash]
        }
    }

    /// What is left of a group's limit, whose page cache gives way; nil without a limit.
    private static func availableBytes(controlGroup directory: String) -> Int? {
        guard let limit = number(directory + "/memory.max"), let current = number(directory + "/memory.current") else {
            return nil
        }
        let statistics = fields(directory + "/memory.stat")
        let cache = (statistics["active_file"] ?? 0) + (statistics["inactive_file"] ?? 0)
        return max(0, limit - current + cache)
    }

    private static func text(_ path: String) -> String? {
        try? String(contentsOfFile: path, encoding: .utf8)
    }

    private static func number(_ path: String) -> Int? {
        text(path).flatMap { Int($0.trimmingCharacters(in: .whitespacesAndNewlines)) }
    }

    /// Lines of a name and a number.
    private static func fields(_ path: String) -> [String: Int] {
        var fields: [String: Int] = [:]
        for line in text(path)?.split(separator: "\n") ?? [] {
            let words = line.split(separator: " ")
            if words.count > 1, let value = Int(words[1]) { fields[String(words[0])] = value }
        }
        return fields
    }
}

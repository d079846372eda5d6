// Where a configuration comes from: a file, systemd's directories, and the environment variables of the first
// implementation, which win over the file.

public import Foundation
internal import StableDiffusion

extension Configuration {
    /// Reads a configuration file and applies the environment.
    ///
    /// Relative paths in the file start from the directory of the file, so a configuration means the same from wherever
    /// the program is started.
    ///
    /// - Parameters:
    ///   - file: path of the file; nil for the defaults alone.
    ///   - environment: the process' environment variables.
    /// - Throws: `ConfigurationError`.
    public static func load(
        file: String?,
        environment: [String: String] = ProcessInfo.processInfo.environment
    ) throws(ConfigurationError) -> Configuration {
        guard let file else {
            return try parse([], file: "", directory: ".", environment: environment)
        }
        return try parse(contents(of: file), file: file, directory: directory(of: file), environment: environment)
    }

    /// The file used when the command line names none: `config.yaml` here, else `/etc/diffused/config.yaml`, else none.
    public static func defaultFile() -> String? {
        ["config.yaml", "/etc/diffused/config.yaml"].first { FileManager.default.fileExists(atPath: $0) }
    }

    /// Decodes the text of a file and applies the environment.
    static func parse(
        _ text: [UInt8],
        file: String,
        directory: String,
        environment: [String: String]
    ) throws(ConfigurationError) -> Configuration {
        let decoder = ConfigurationDecoder(file: file, directory: directory)
        var result = try decoder.decode(YAMLReader.read(text, file: file), defaults: systemDefaults(environment))
        try result.apply(environment)
        return result
    }

    /// The defaults as the system the daemon runs on wants them.
    private static func systemDefaults(_ environment: [String: String]) -> Configuration {
        var result = Configuration()
        if let directory = firstDirectory(environment["STATE_DIRECTORY"]) {
            result.storage.directory = directory
        }
        if let directory = firstDirectory(environment["CACHE_DIRECTORY"]) {
            result.cache.directory = directory
        } else if let directory = environment["XDG_CACHE_HOME"], directory.hasPrefix("/") {
            result.cache.directory = directory + "/diffused"
        } else if let home = environment["HOME"], home.hasPrefix("/") {
            result.cache.directory = (home == "/" ? "" : home) + "/.cache/diffused"
        }
        return result
    }

    /// systemd separates several directories by colons; a unit of ours has one.
    private static func firstDirectory(_ variable: String?) -> String? {
        variable?.split(separator: ":").first.map(String.init)
    }

    /// `WIDTH`, `HEIGHT` and `MIXED_PRECISION`.
    ///
    /// An empty variable counts as unset, as `docker compose` leaves them.
    private mutating func apply(_ environment: [String: String]) throws(ConfigurationError) {
        if let width = try Self.size("WIDTH", atMost: limits.width, in: environment) { image.width = width }
        if let height = try Self.size("HEIGHT", atMost: limits.height, in: environment) { image.height = height }
        switch environment["MIXED_PRECISION"] {
        case nil, "": break
        case "yes": precision = .float16
        case "no": precision = .float32
        case .some(let text):
            throw ConfigurationError(
                origin: .environment("MIXED_PRECISION"),
                reason: "found \"\(text)\", allowed is yes (float16) or no (float32)"
            )
        }
    }

    private static func size(
        _ name: String,
        atMost limit: Int,
        in environment: [String: String]
    ) throws(ConfigurationError) -> Int? {
        guard let text = environment[name], !text.isEmpty else { return nil }
        guard let value = Int(text), isPictureSide(value, atMost: limit) else {
            throw ConfigurationError(
                origin: .environment(name),
                reason: "found \"\(text)\", allowed is a multiple of 8 from 8 to \(limit)"
            )
        }
        return value
    }

    private static func directory(of file: String) -> String {
        guard let slash = file.lastIndex(of: "/") else { return "." }
        return slash == file.startIndex ? "/" : String(file[..<slash])
    }

    /// Reads at most one byte more than a configuration may have, so that a device file or a pipe cannot fill memory.
    private static func contents(of file: String) throws(ConfigurationError) -> [UInt8] {
        do {
            let handle = try FileHandle(forReadingFrom: URL(fileURLWithPath: file))
            defer { try? handle.close() }
            var bytes: [UInt8] = []
            while bytes.count <= YAMLReader.maximumBytes {
                guard let chunk = try handle.read(upToCount: 1 << 16), !chunk.isEmpty else { break }
                bytes += chunk
            }
            return bytes
        } catch {
            throw ConfigurationError(origin: .wholeFile(file), reason: "cannot be read: \(fileErrorReason(error))")
        }
    }
}

/// What the system said about a file, without Foundation's wrapping.
private func fileErrorReason(_ error: any Error) -> String {
    let error = error as NSError
    let cause = (error.userInfo[NSUnderlyingErrorKey] as? NSError) ?? error
    guard cause.domain == NSPOSIXErrorDomain else { return error.localizedDescription }
    return String(cString: strerror(Int32(cause.code)))
}

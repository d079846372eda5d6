// A repository's files on their way to a folder: what there is to do is known, and whether it fits the disk, before the first byte of it.

internal import Foundation

/// The download of what is needed of a repository.
public struct Pull: Sendable {
    /// What was asked for.
    public let repository: RepositoryName
    /// Where it goes.
    public let directory: String
    /// What is needed.
    public let selection: Selection
    /// Which state of the repository it is.
    public let commit: String
    private let endpoint: HubEndpoint
    private let patience: Patience

    /// Something that happened.
    public enum Event: Sendable, Equatable {
        /// A file was there already.
        case kept(RepositoryFile)
        /// A file is being fetched.
        case begins(RepositoryFile)
        /// So many bytes are there, of all that are needed.
        case progress(bytes: Int, of: Int)
        /// A file is there.
        case done(RepositoryFile)
    }

    /// Asks the hub what there is, and chooses.
    ///
    /// - Parameters:
    ///   - directory: Is made when missing, but not yet.
    ///   - variant: See `Selection`.
    ///   - patterns: Likewise.
    /// - Throws: `HubError`.
    public init(
        _ repository: RepositoryName,
        into directory: String,
        variant: WeightVariant,
        patterns: [String] = [],
        from endpoint: HubEndpoint,
        patience: Patience = Patience()
    ) async throws {
        let found = try await HubClient.with(endpoint, patience) { try await $0.repository(repository) }
        self.repository = repository
        self.directory = directory
        self.endpoint = endpoint
        self.patience = patience
        commit = found.commit
        selection = try Selection(from: found.files, variant: variant, patterns: patterns)
    }

    /// What to give `diffused` as a model, a VAE or a LoRA: the folder, or the file where there is but one.
    public var path: String {
        guard let only = selection.files.first, selection.files.count == 1 else { return directory }
        return "\(directory)/\(only.path)"
    }

    /// Fetches what is not there yet, one file after another.
    ///
    /// - Parameters:
    ///   - freeBytes: Tells what is free on the disk of a folder that is there; nil where that is not known.
    ///   - report: Is told what happens.
    /// - Throws: `HubError`. What has come by then is kept.
    public func callAsFunction(
        freeBytes: (String) -> Int? = Pull.freeBytes,
        report: (Event) -> Void
    ) async throws {
        var missing: [FileDownload] = []
        var done = 0
        for file in selection.files {
            let download = FileDownload(file, into: directory)
            if download.isThere() {
                report(.kept(file))
                done += file.size
            } else {
                missing.append(download)
            }
        }
        let needed = missing.reduce(0) { $0 + $1.remainingBytes }
        if let free = freeBytes(existingAncestor), free < needed {
            throw HubError.diskFull(path: directory, needed: needed, free: free)
        }
        try await HubClient.with(endpoint, patience) { client in
            for download in missing {
                report(.begins(download.file))
                let address = try endpoint.file(download.file.path, of: repository, commit: commit)
                try await download(from: address, by: client) {
                    report(.progress(bytes: done + $0, of: selection.size))
                }
                done += download.file.size
                report(.done(download.file))
            }
        }
    }

    /// The folder itself, or the nearest above it that is there.
    private var existingAncestor: String {
        var path = URL(fileURLWithPath: directory).standardized.path
        while !FileManager.default.fileExists(atPath: path), path != "/" {
            path = (path as NSString).deletingLastPathComponent
        }
        return path
    }

    /// Bytes that a program may still write to the disk of a folder.
    public static func freeBytes(_ path: String) -> Int? {
        var status = statvfs()
        guard statvfs(path, &status) == 0 else { return nil }
        return Int(status.f_bavail) * Int(status.f_frsize)
    }
}

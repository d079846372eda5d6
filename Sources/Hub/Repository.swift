// What a hub says of a repository: the commit that a revision stands for, and every file with its size and checksum. All of it is what a server
// sent: a path may lead nowhere but below the folder it is downloaded to.

internal import JSON

/// The name of a repository and which state of it is meant.
public struct RepositoryName: Sendable, Equatable, CustomStringConvertible {
    /// `owner/name`, or `name` alone.
    public let path: String
    /// A branch, a tag or a commit.
    public let revision: String

    /// Reads `REPO` or `REPO@REVISION`; nil for what is neither.
    public init?(_ text: String) {
        let parts = text.split(separator: "@", maxSplits: 1, omittingEmptySubsequences: false)
        let names = parts[0].split(separator: "/", omittingEmptySubsequences: false)
        let isName = { (name: Substring) in
            !name.isEmpty && name.count <= 96 && !name.hasPrefix(".") && !name.hasPrefix("-")
                && name.allSatisfy { $0.isASCII && ($0.isLetter || $0.isNumber || "._-".contains($0)) }
        }
        guard 1...2 ~= names.count, names.allSatisfy(isName) else { return nil }
        path = String(parts[0])
        revision = parts.count == 2 ? String(parts[1]) : "main"
        let isPrintable = revision.unicodeScalars.allSatisfy { $0.properties.generalCategory != .control }
        guard !revision.isEmpty, revision.count <= 255, isPrintable else { return nil }
    }

    /// The last part of the path.
    public var name: String { path.split(separator: "/").last.map(String.init) ?? path }

    /// As it is written.
    public var description: String { revision == "main" ? path : "\(path)@\(revision)" }
}

/// What the content of a file must come to, in lower-case hexadecimal digits.
public enum Checksum: Sendable, Equatable {
    /// SHA-256 of the content: files in Git's large file storage.
    case sha256(String)
    /// The id that Git gives a file: SHA-1 of `blob SIZE`, a zero byte and the content (git-hash-object).
    case gitBlob(String)

    /// The digits.
    public var digits: String {
        switch self {
        case .sha256(let digits), .gitBlob(let digits): digits
        }
    }
}

/// A file of a repository.
public struct RepositoryFile: Sendable, Equatable {
    /// From the top of the repository, with slashes; relative, and without `.` or `..`.
    public let path: String
    /// In bytes.
    public let size: Int
    /// Of its content.
    public let checksum: Checksum

    /// A file from its parts.
    public init(path: String, size: Int, checksum: Checksum) {
        self.path = path
        self.size = size
        self.checksum = checksum
    }
}

/// A repository at a commit.
public struct Repository: Sendable, Equatable {
    /// The commit, in hexadecimal digits.
    public let commit: String
    /// Every file.
    public let files: [RepositoryFile]

    /// More than any file has, in bytes, and more files than any model has: their sum stays within 64 bits.
    private static let (largestFile, mostFiles) = (1 << 46, 50_000)

    /// Reads the answer to `GET /api/models/{repo}/revision/{revision}?blobs=true`.
    ///
    /// - Throws: `HubError.badListing`.
    init(_ document: JSONValue) throws(HubError) {
        guard let commit = document["sha"]?.stringValue, Self.isHexadecimal(commit, 40...64) else {
            throw .badListing("it names no commit")
        }
        guard let siblings = document["siblings"]?.arrayValue else { throw .badListing("it lists no files") }
        guard siblings.count <= Self.mostFiles else { throw .badListing("it lists \(siblings.count) files") }
        self.commit = commit
        var files: [RepositoryFile] = []
        for sibling in siblings {
            guard let path = sibling["rfilename"]?.stringValue, Self.isSafe(path) else {
                throw .badListing("it lists a file with the unusable name \(sibling["rfilename"] ?? .null)")
            }
            let lfs = sibling["lfs"]
            guard let size = (lfs?["size"] ?? sibling["size"])?.integerValue, 0...Self.largestFile ~= size
            else {
                throw .badListing("it gives no size of \(path)")
            }
            let checksum: Checksum
            if let digits = lfs?["sha256"]?.stringValue?.lowercased(), Self.isHexadecimal(digits, 64...64) {
                checksum = .sha256(digits)
            } else if lfs?.objectValue == nil, let digits = sibling["blobId"]?.stringValue?.lowercased(),
                Self.isHexadecimal(digits, 40...40)
            {
                checksum = .gitBlob(digits)
            } else {
                throw .badListing("it gives no checksum of \(path)")
            }
            files.append(RepositoryFile(path: path, size: size, checksum: checksum))
        }
        guard Set(files.map(\.path)).count == files.count else { throw .badListing("it lists a file twice") }
        self.files = files
    }

    private static func isHexadecimal(_ text: String, _ length: ClosedRange<Int>) -> Bool {
        length.contains(text.utf8.count) && text.utf8.allSatisfy { "0123456789abcdef".utf8.contains($0) }
    }

    /// Whether a path stays below where it is put, and is none of the files that a download makes for itself.
    private static func isSafe(_ path: String) -> Bool {
        let parts = path.split(separator: "/", omittingEmptySubsequences: false)
        return path.utf8.count <= 1024 && !path.hasSuffix(".incomplete")
            && parts.allSatisfy { $0 != "" && $0 != "." && $0 != ".." && $0.utf8.count <= 200 }
            && path.unicodeScalars.allSatisfy { $0 != "\\" && $0.properties.generalCategory != .control }
    }
}

// The directory that requests name LoRAs of. Files may come, change and go while the program runs: each request looks anew.

internal import Foundation

/// The LoRAs that requests may name.
final class LoRADirectory {
    /// A file as it was when it was read.
    struct Identity: Hashable {
        let path: String
        let device: UInt64
        let file: UInt64
        let size: Int
        let seconds: Int
        let nanoseconds: Int
    }

    /// Endings of files of tensors.
    private static let endings = [".safetensors", ".pt", ".ckpt", ".bin"]
    /// Files whose names and shapes are remembered.
    private static let remembered = 8

    /// Nil where none is configured.
    private let path: String?
    private let targets: LoRATargets
    /// The last used first.
    private var read: [(identity: Identity, lora: LoRA)] = []

    /// The LoRAs of a directory, for a model.
    init(_ path: String?, _ targets: LoRATargets) {
        self.path = path
        self.targets = targets
    }

    /// Reads the LoRAs that a request names, or remembers them.
    ///
    /// - Throws: `GenerationError.invalid` for what is not there or does not fit the model.
    func callAsFunction(_ references: [LoRAReference]) throws(GenerationError) -> [(Identity, LoRA)] {
        guard references.count <= LoRAReference.maximumCount else {
            throw invalid("\(references.count) LoRAs are more than \(LoRAReference.maximumCount)")
        }
        var loras: [(Identity, LoRA)] = []
        for reference in references {
            guard abs(reference.weight) <= LoRAReference.maximumWeight else {
                let limit = Int(LoRAReference.maximumWeight)
                throw invalid(
                    "the weight \(reference.weight) of \"\(reference.name)\" is not from -\(limit) to \(limit)"
                )
            }
            loras.append(try lora(reference.name))
        }
        return loras
    }

    private func lora(_ name: String) throws(GenerationError) -> (Identity, LoRA) {
        let identity = try find(name)
        if let index = read.firstIndex(where: { $0.identity == identity }) {
            read.insert(read.remove(at: index), at: 0)
            return read[0]
        }
        let lora: LoRA
        do {
            lora = try LoRA(path: identity.path, targets)
        } catch let error as UnfitFileError {
            throw invalid("\"\(name)\": \(error)")
        } catch {
            // The path of the file is nothing for those who draw over the network.
            throw invalid("\(error)".replacingOccurrences(of: identity.path, with: "\"\(name)\""))
        }
        read.insert((identity, lora), at: 0)
        if read.count > Self.remembered { read.removeLast() }
        return read[0]
    }

    private func find(_ name: String) throws(GenerationError) -> Identity {
        guard let path else {
            throw invalid("no directory of LoRAs is configured; give the model one with loras")
        }
        guard !name.isEmpty, !name.hasPrefix("."), name.utf8.count <= 200,
            !name.unicodeScalars.contains(where: { $0 == "/" || $0.value < 32 })
        else {
            throw invalid("\"\(name.prefix(200))\" is no name of a file in the directory of LoRAs")
        }
        let hasEnding = Self.endings.contains { name.hasSuffix($0) }
        for ending in (hasEnding ? [""] : []) + Self.endings {
            if let identity = Identity(path: "\(path)/\(name)\(ending)") { return identity }
        }
        let others = nearest(to: name, in: path)
        throw invalid(
            "there is no LoRA \"\(name)\"" + (others.isEmpty ? "" : "; there is \(others.joined(separator: ", "))")
        )
    }

    /// Names in the directory that a name may have been meant to be.
    private func nearest(to name: String, in path: String) -> [String] {
        let files = (try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []
        let names = files.compactMap { file in
            Self.endings.first(where: file.hasSuffix).map { String(file.dropLast($0.count)) }
        }
        let wanted = name.lowercased()
        func distance(_ other: String) -> Int {
            let other = other.lowercased()
            return other.contains(wanted) || wanted.contains(other) ? 1 : editDistance(other, wanted)
        }
        return names.map { ($0, distance($0)) }
            .filter { $0.1 <= max(2, name.count / 2) }
            .sorted { ($0.1, $0.0) < ($1.1, $1.0) }
            .prefix(3).map { "\"\($0.0)\"" }
    }

    private func invalid(_ reason: String) -> GenerationError { .invalid(field: "loras", reason: reason) }
}

extension LoRADirectory.Identity {
    /// A regular file, or a link to one; nil if there is none.
    init?(path: String) {
        var status = stat()
        guard stat(path, &status) == 0, status.st_mode & S_IFMT == S_IFREG else { return nil }
        self.init(
            path: path,
            device: UInt64(status.st_dev),
            file: UInt64(status.st_ino),
            size: Int(status.st_size),
            seconds: Int(status.st_mtim.tv_sec),
            nanoseconds: Int(status.st_mtim.tv_nsec)
        )
    }
}

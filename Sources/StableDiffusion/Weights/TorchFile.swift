// PyTorch's files (`torch.save` since version 1.6): a zip archive that holds a pickle, `NAME/data.pkl`, and the elements of
// every storage as a record of its own, `NAME/data/KEY`, not compressed, so that tensors are read where they lie.

/// Reads PyTorch's files.
enum TorchFile {
    /// A pickle of a thousand tensors has some hundreds of kilobytes.
    private static let maximumPickleBytes = 64 << 20

    /// The tensors of a file and the numbers beside them.
    ///
    /// - Parameters:
    ///   - bytes: The whole file.
    ///   - path: For messages.
    static func contents(of bytes: UnsafeRawBufferPointer, path: String) throws(WeightsError) -> WeightFile.Contents {
        let archive: ZipArchive
        do {
            archive = try ZipArchive(bytes)
        } catch {
            switch error {
            case .truncated(let reason): throw .truncated(file: path, reason: reason)
            case .malformed(let reason): throw .malformed(file: path, reason: "a damaged zip archive: \(reason)")
            }
        }
        let prefix = try prefix(of: archive, path: path)
        let pickleBytes = try record("data.pkl", prefix, archive, bytes, maximumBytes: maximumPickleBytes, path: path)
        if archive.entries[prefix + "byteorder"] != nil {
            let order = try record("byteorder", prefix, archive, bytes, maximumBytes: 64, path: path)
            guard order.elementsEqual("little".utf8) else {
                throw .unsupportedFormat(
                    file: path,
                    found: "a file of a big-endian machine",
                    advice: "get the model as .safetensors"
                )
            }
        }
        // The pickle must not outlive its bytes, so everything is made of it within.
        let result = pickleBytes.withUnsafeBytes { buffer in
            Result { () throws(WeightsError) in
                let pickle = try run(buffer, path: path)
                let states = StateDictionary(pickle)
                var entries: [String: WeightFile.Entry] = [:]
                for (name, tensor) in states.tensors {
                    entries[name] = try entry(pickle.tensors[tensor], name, pickle, prefix, archive, path: path)
                }
                guard !entries.isEmpty else {
                    throw WeightsError.malformed(file: path, reason: "there are no tensors in its pickle")
                }
                return WeightFile.Contents(format: .pyTorch, entries: entries, metadata: states.numbers)
            }
        }
        return try result.get()
    }

    /// Why a file that is nothing but pickles is not read; what they want comes first.
    static func refusalOfBarePickle(_ bytes: UnsafeRawBufferPointer, path: String) -> WeightsError {
        // `torch.save` before version 1.6 writes four pickles, the first of which is this number, then the storages.
        let magic: [UInt8] = [0x6C, 0xFC, 0x9C, 0x46, 0xF9, 0x20, 0x6A, 0xA8, 0x50, 0x19]
        let isTorch = bytes.count > 14 && bytes[4..<14].elementsEqual(magic)
        var rest = UnsafeRawBufferPointer(rebasing: bytes.prefix(maximumPickleBytes))
        for _ in 0..<(isTorch ? 4 : 1) {
            do throws(WeightsError) {
                rest = UnsafeRawBufferPointer(rebasing: rest[try run(rest, path: path).end...])
            } catch {
                if case .forbiddenGlobal = error { return error }
                break
            }
        }
        guard isTorch else {
            return .unsupportedFormat(
                file: path,
                found: "a pickle without PyTorch's zip archive around it",
                advice: "get the model as .safetensors"
            )
        }
        return .unsupportedFormat(
            file: path,
            found: "a file of PyTorch's format from before version 1.6",
            advice: "a newer PyTorch can write it again: torch.save(torch.load(\"OLD\", weights_only=True), \"NEW\")"
        )
    }

    /// Whether bytes are those of an import in a pickle: `c`, then a module and a name on lines of their own.
    static func beginsWithImport(_ bytes: UnsafeRawBufferPointer) -> Bool {
        guard bytes.first == UInt8(ascii: "c") else { return false }
        let lines = bytes.dropFirst().prefix(200).split(
            separator: UInt8(ascii: "\n"),
            maxSplits: 2,
            omittingEmptySubsequences: false
        )
        return lines.count == 3
            && lines.prefix(2).allSatisfy { line in
                !line.isEmpty
                    && line.allSatisfy { UInt8(ascii: "0")...UInt8(ascii: "z") ~= $0 || $0 == UInt8(ascii: ".") }
            }
    }

    private static func run(_ bytes: UnsafeRawBufferPointer, path: String) throws(WeightsError) -> Pickle {
        do {
            return try Pickle(bytes)
        } catch {
            switch error {
            case .forbidden(let name): throw .forbiddenGlobal(name: name.printable, file: path)
            case .malformed(let reason): throw .malformed(file: path, reason: "its pickle is damaged: \(reason)")
            }
        }
    }

    /// What stands before `data.pkl` and every other record.
    private static func prefix(of archive: ZipArchive, path: String) throws(WeightsError) -> String {
        let names = archive.entries.keys
        let pickles = names.filter { $0 == "data.pkl" || $0.hasSuffix("/data.pkl") }
        guard let pickle = pickles.first, pickles.count == 1 else {
            if names.contains(where: { $0.hasSuffix("model_index.json") }) {
                throw .unsupportedFormat(
                    file: path,
                    found: "a zip archive of a model folder",
                    advice: "unpack it and give the folder"
                )
            }
            let examples = names.sorted().prefix(3).map(\.printable).joined(separator: ", ")
            throw .malformed(
                file: path,
                reason: pickles.isEmpty
                    ? "a zip archive of \(names.count) files\(names.isEmpty ? "" : " (\(examples))"), none of them PyTorch's data.pkl"
                    : "a zip archive with \(pickles.count) pickles"
            )
        }
        let prefix = String(pickle.dropLast("data.pkl".count))
        guard !names.contains(where: { $0.hasPrefix(prefix + "code/") }) else {
            throw .unsupportedFormat(
                file: path,
                found: "a TorchScript program",
                advice: "get the model's weights, as .safetensors"
            )
        }
        return prefix
    }

    private static func record(
        _ name: String,
        _ prefix: String,
        _ archive: ZipArchive,
        _ bytes: UnsafeRawBufferPointer,
        maximumBytes: Int,
        path: String
    ) throws(WeightsError) -> [UInt8] {
        guard let entry = archive.entries[prefix + name] else {
            throw .malformed(file: path, reason: "it has no \(name)")
        }
        do {
            return try ZipArchive.contents(of: entry, in: bytes, maximumBytes: maximumBytes)
        } catch {
            switch error {
            case .truncated(let reason), .malformed(let reason):
                throw .malformed(file: path, reason: "\(name): \(reason)")
            }
        }
    }

    /// Where a tensor lies in the file.
    private static func entry(
        _ tensor: Pickle.Tensor,
        _ name: String,
        _ pickle: Pickle,
        _ prefix: String,
        _ archive: ZipArchive,
        path: String
    ) throws(WeightsError) -> WeightFile.Entry {
        let storage = pickle.storages[tensor.storage]
        let name = name.printable
        guard let record = archive.entries[prefix + "data/" + storage.key] else {
            throw .malformed(file: path, reason: "tensor \"\(name)\": the archive has no data/\(storage.key.printable)")
        }
        guard record.method == 0, !record.isEncrypted, record.size == record.range.count else {
            throw .unsupportedFormat(
                file: path,
                found: "an archive whose tensors are \(record.isEncrypted ? "encrypted" : "compressed")",
                advice: "PyTorch stores them as they are; unpack the archive and make it again without compression"
            )
        }
        let size = tensor.type.size
        let span =
            tensor.shape.contains(0) ? 0 : zip(tensor.shape, tensor.strides).reduce(1) { $0 + ($1.0 - 1) * $1.1 }
        // Neither overflows: the pickle's machine has checked both against the number of elements of the storage.
        let (end, overflow) = (tensor.offset + span).multipliedReportingOverflow(by: size)
        guard !overflow, end <= record.range.count else {
            throw .malformed(
                file: path,
                reason:
                    "tensor \"\(name)\" ends at byte \(end) of data/\(storage.key.printable), which has \(record.range.count)"
            )
        }
        let start = record.range.lowerBound + tensor.offset * size
        return WeightFile.Entry(
            typeName: tensor.type.name,
            type: WeightType(rawValue: tensor.type.name),
            shape: tensor.shape,
            strides: tensor.strides,
            range: start..<(start + span * size)
        )
    }
}

/// The tensors of a pickle by the names a state_dict has for them.
private struct StateDictionary {
    /// Indices of tensors.
    private(set) var tensors: [String: Int] = [:]
    /// Whole numbers at the root, such as `global_step`.
    private(set) var numbers: [String: String] = [:]

    /// A state_dict may be nested once in a training's checkpoint, and an embedding within a dictionary.
    private static let maximumDepth = 4
    /// Names longer than any are left out: one within another, they would fill the memory.
    private static let maximumNameBytes = 1024

    init(_ pickle: Pickle) {
        let members = pickle.members(of: pickle.root)
        for case (.string(let key), .int(let value)) in members { numbers[key] = String(value) }
        var root = pickle.root
        for case (.string("state_dict"), let value) in members where !pickle.members(of: value).isEmpty { root = value }
        var seen: Set<Int> = []
        collect(root, prefix: "", depth: 0, pickle, &seen)
    }

    private mutating func collect(
        _ value: Pickle.Value,
        prefix: String,
        depth: Int,
        _ pickle: Pickle,
        _ seen: inout Set<Int>
    ) {
        // A dictionary that holds itself, or the same one many times, is walked once.
        guard case .container(let index) = value, depth < Self.maximumDepth, seen.insert(index).inserted else { return }
        for (key, value) in pickle.members(of: value) {
            guard case .string(let key) = key, key.utf8.count <= Self.maximumNameBytes else { continue }
            let name = prefix.isEmpty ? key : "\(prefix).\(key)"
            if case .tensor(let tensor) = value {
                tensors[name] = tensor
            } else {
                collect(value, prefix: name, depth: depth + 1, pickle, &seen)
            }
        }
    }
}

extension String {
    /// The text as it can stand in a message: not too long, control characters replaced.
    var printable: String {
        String(
            String.UnicodeScalarView(
                unicodeScalars.prefix(200).map { $0.properties.generalCategory == .control ? "?" : $0 }
            )
        )
    }
}

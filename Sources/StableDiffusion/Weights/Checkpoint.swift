// The weights of one part of a model (`unet/`, `vae/`, `text_encoder/`): finds the files, whichever way the folder
// names and shards them, and reads tensors by name with the expected shape. Published checkpoints name some tensors
// differently; `TensorNames` says how.

/// The weights of one component's directory.
///
/// Safe to read from several threads.
package final class Checkpoint: Sendable {
    /// The directory, for messages about a tensor that is in no file.
    package let directory: String
    /// The open files.
    package let files: [SafetensorsFile]
    private let locations: [String: (file: Int, entry: SafetensorsFile.Entry)]

    /// Opens the weights of a component.
    ///
    /// - Parameter directory: such as `model/unet`.
    package convenience init(directory: String) throws(WeightsError) {
        try self.init(directory: directory, paths: weightFiles(in: directory))
    }

    /// Opens files that together hold a component's weights.
    package init(directory: String, paths: [String]) throws(WeightsError) {
        self.directory = directory
        var files: [SafetensorsFile] = []
        var locations: [String: (file: Int, entry: SafetensorsFile.Entry)] = [:]
        for path in paths {
            let file = try SafetensorsFile(path: path)
            for (name, entry) in file.entries {
                if let other = locations.updateValue((files.count, entry), forKey: name) {
                    throw .malformed(file: path, reason: "\"\(name)\" is also in \(files[other.file].path)")
                }
            }
            files.append(file)
        }
        self.files = files
        self.locations = locations
    }

    /// Names of all tensors as the files spell them, sorted.
    package var names: [String] { locations.keys.sorted() }

    /// Bytes of all tensors.
    package var byteCount: Int { locations.values.reduce(0) { $0 + $1.entry.range.count } }

    /// Whether a tensor is there, by this name or another that published files use for it.
    package func contains(_ name: String) -> Bool {
        resolve(name) != nil
    }

    /// Gives a tensor's stored bytes, at any alignment, and their type to `body`.
    ///
    /// The name, shape, type and finiteness of the tensor have been checked by then. A 1x1 convolution and a linear
    /// layer hold the same numbers, so trailing dimensions of 1 beyond the second make no difference.
    package func withTensor<Result>(
        named name: String,
        shape: [Int],
        body: (UnsafeRawBufferPointer, WeightType) throws -> Result
    ) throws -> Result {
        guard let stored = resolve(name), let location = locations[stored] else {
            throw WeightsError.missing(name: name, tried: TensorNames.spellings(of: name), source: directory)
        }
        let file = files[location.file]
        guard location.entry.shape.withoutTrailingOnes == shape.withoutTrailingOnes else {
            throw WeightsError.shapeMismatch(
                name: stored,
                expected: shape,
                found: location.entry.shape,
                file: file.path
            )
        }
        guard let type = location.entry.type, type.isWeight else {
            throw WeightsError.unsupportedType(name: stored, type: location.entry.typeName, file: file.path)
        }
        return try file.withBytes(of: location.entry) { bytes in
            if let index = type.firstNonFinite(in: bytes) {
                throw WeightsError.nonFinite(name: stored, index: index, file: file.path)
            }
            return try body(bytes, type)
        }
    }

    /// A tensor as floats, in the order of the file.
    package func floats(named name: String, shape: [Int]) throws -> [Float] {
        try withTensor(named: name, shape: shape) { bytes, type in
            let elements = bytes.count / type.size
            return [Float](unsafeUninitializedCapacity: elements) { buffer, count in
                type.convert(bytes, into: UnsafeMutableBufferPointer(rebasing: buffer[..<elements]))
                count = elements
            }
        }
    }

    /// Writes a tensor as floats into memory of the caller's, of exactly its number of elements (traps otherwise).
    package func read(named name: String, shape: [Int], into output: UnsafeMutableBufferPointer<Float>) throws {
        try withTensor(named: name, shape: shape) { bytes, type in
            precondition(bytes.count / type.size == output.count, "read \(name): \(shape) into \(output.count) floats")
            type.convert(bytes, into: output)
        }
    }

    private func resolve(_ name: String) -> String? {
        if locations[name] != nil { return name }
        return TensorNames.spellings(of: name).first { locations[$0] != nil }
    }
}

extension [Int] {
    /// The shape with `[out, in, 1, 1]` and `[out, in, 1]` written as `[out, in]`.
    fileprivate var withoutTrailingOnes: ArraySlice<Int> {
        var count = count
        while count > 2, self[count - 1] == 1 { count -= 1 }
        return self[..<count]
    }
}

// The weights of one part of a model (UNet, autoencoder, text encoder): of a folder (`unet/`), whichever way it names and
// shards the files, or of a file that holds all parts. Tensors are read by the name diffusers has for them, with the expected
// shape; a `TensorNaming` says what files call them.

/// The weights of one component.
///
/// Safe to read from several threads.
package final class Checkpoint: Sendable {
    /// The directory or the file, for messages about a tensor that is in no file.
    package let source: String
    /// The open files.
    package let files: [WeightFile]
    private let naming: TensorNaming
    private let locations: [String: (file: Int, entry: WeightFile.Entry)]

    /// Opens the weights of a component.
    ///
    /// - Parameter directory: such as `model/unet`.
    package convenience init(directory: String) throws(WeightsError) {
        try self.init(directory: directory, paths: weightFiles(in: directory))
    }

    /// Opens files that together hold a component's weights.
    package convenience init(directory: String, paths: [String]) throws(WeightsError) {
        var files: [WeightFile] = []
        for path in paths { files.append(try WeightFile(path: path)) }
        try self.init(source: directory, files: files, naming: TensorNames.diffusers)
    }

    /// The component whose tensors are in open files.
    ///
    /// - Parameter naming: What the files call the component's tensors; they may hold others as well.
    init(source: String, files: [WeightFile], naming: @escaping TensorNaming) throws(WeightsError) {
        self.source = source
        self.files = files
        self.naming = naming
        var locations: [String: (file: Int, entry: WeightFile.Entry)] = [:]
        for (index, file) in files.enumerated() {
            for (name, entry) in file.entries {
                if let other = locations.updateValue((index, entry), forKey: name) {
                    throw .malformed(file: file.path, reason: "\"\(name)\" is also in \(files[other.file].path)")
                }
            }
        }
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
        let (file, entry) = try checkedEntry(named: name, shape: shape)
        return try file.withBytes(of: entry.value) { bytes in
            if let index = entry.type.firstNonFinite(in: bytes) {
                throw WeightsError.nonFinite(name: entry.name, index: index, file: file.path)
            }
            return try body(bytes, entry.type)
        }
    }

    /// Checks that a tensor is there with a shape, in a type that is read; its elements are not looked at.
    package func check(_ name: String, shape: [Int]) throws(WeightsError) {
        _ = try checkedEntry(named: name, shape: shape)
    }

    private func checkedEntry(
        named name: String,
        shape: [Int]
    ) throws(WeightsError) -> (WeightFile, (name: String, value: WeightFile.Entry, type: WeightType)) {
        guard let stored = resolve(name), let location = locations[stored.name] else {
            throw .missing(name: name, tried: naming(name).map(\.name), source: source)
        }
        let file = files[location.file]
        let view = location.entry.view(stored)
        guard let type = location.entry.type, type.isWeight else {
            throw .unsupportedType(name: stored.name, type: location.entry.typeName, file: file.path)
        }
        guard let view, view.shape.withoutTrailingOnes == shape.withoutTrailingOnes else {
            let found = view?.shape ?? location.entry.shape
            throw .shapeMismatch(name: stored.name, expected: shape, found: found, file: file.path)
        }
        return (file, (stored.name, view, type))
    }

    /// The entries that a name resolves to, as they are stored; nil when it is in no file.
    func stored(_ name: String) -> (stored: StoredTensor, entry: WeightFile.Entry)? {
        resolve(name).flatMap { stored in locations[stored.name].map { (stored, $0.entry) } }
    }

    /// A tensor as floats, in the order of the file.
    package func floats(named name: String, shape: [Int]) throws -> [Float] {
        try withTensor(named: name, shape: shape) { bytes, type in type.floats(bytes) }
    }

    /// Writes a tensor as floats into memory of the caller's, of exactly its number of elements (traps otherwise).
    package func read(named name: String, shape: [Int], into output: UnsafeMutableBufferPointer<Float>) throws {
        try withTensor(named: name, shape: shape) { bytes, type in
            precondition(bytes.count / type.size == output.count, "read \(name): \(shape) into \(output.count) floats")
            type.convert(bytes, into: output)
        }
    }

    private func resolve(_ name: String) -> StoredTensor? {
        naming(name).first { locations[$0.name] != nil }
    }
}

extension [Int] {
    /// The shape with `[out, in, 1, 1]` and `[out, in, 1]` written as `[out, in]`.
    var withoutTrailingOnes: ArraySlice<Int> {
        var count = count
        while count > 2, self[count - 1] == 1 { count -= 1 }
        return self[..<count]
    }
}

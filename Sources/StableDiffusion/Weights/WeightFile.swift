// One file of weights, mapped into memory, whichever container it is: safetensors or PyTorch's zip with a pickle. Everything
// a container says about its tensors is checked when the file is opened, so that reading one later cannot leave the file.

internal import Glibc

/// A mapped, checked file of tensors.
///
/// Safe to read from several threads.
///
/// The file must not be made shorter while it is open; pages that vanish end the process, as with every mapping.
package final class WeightFile: Sendable {
    /// Containers of tensors.
    package enum Format: String, Sendable {
        case safetensors
        /// A zip archive with a pickle: `.ckpt`, `.pt`, `.pth`, `.bin`.
        case pyTorch = "PyTorch"
    }

    /// Where a tensor lies in a file and what it is.
    package struct Entry: Sendable, Equatable {
        /// Element type as safetensors spells it.
        package let typeName: String
        /// Element type, if it is one this program knows.
        package let type: WeightType?
        /// Shape, outermost dimension first; empty for a scalar.
        package let shape: [Int]
        /// Elements from one index to the next, for each dimension; nil when the elements follow each other in the order of the shape.
        package let strides: [Int]?
        /// Bytes within the file, from the first element to the last.
        package let range: Range<Int>

        /// An entry from its parts.
        init(typeName: String, type: WeightType?, shape: [Int], strides: [Int]? = nil, range: Range<Int>) {
            self.typeName = typeName
            self.type = type
            self.shape = shape
            self.strides = strides.flatMap { Self.areContiguous($0, shape) ? nil : $0 }
            self.range = range
        }

        /// Number of elements.
        package var count: Int { shape.reduce(1, *) }
    }

    /// What a container holds.
    struct Contents {
        let format: Format
        /// Tensors by name.
        let entries: [String: Entry]
        /// What the file says about itself: `__metadata__` of safetensors, the numbers beside a `state_dict` of PyTorch.
        let metadata: [String: String]
    }

    /// The file's path.
    package let path: String
    private let contents: Contents
    private let mapping: FileMapping

    /// The container.
    package var format: Format { contents.format }
    /// Tensors by name.
    package var entries: [String: Entry] { contents.entries }
    /// What the file says about itself, such as `modelspec.architecture`, `ss_base_model_version` or `global_step`.
    package var metadata: [String: String] { contents.metadata }

    /// Maps a file, finds out which container it is and checks what it says about its tensors.
    package init(path: String) throws(WeightsError) {
        self.path = path
        mapping = try FileMapping(path: path)
        contents = try Self.contents(of: mapping.bytes, path: path)
    }

    /// Reads the container in `bytes`, the whole of a file; the path is for messages.
    static func contents(of bytes: UnsafeRawBufferPointer, path: String) throws(WeightsError) -> Contents {
        // What a clone without Git LFS leaves in place of a large file.
        if bytes.starts(with: "version https://git-lfs".utf8) {
            throw .malformed(
                file: path,
                reason: "it is a Git LFS pointer; run \"git lfs pull\", or download the file itself"
            )
        }
        // What a server sends to those who are not logged in.
        if bytes.starts(with: "<!DOCTYPE".utf8) || bytes.starts(with: "<html".utf8) {
            throw .malformed(file: path, reason: "it is a web page; download the file itself")
        }
        // A safetensors file begins with a length, which can be any bytes, and then a brace.
        let mayBeSafetensors = bytes.count > 8 && bytes[8] == UInt8(ascii: "{")
        if !mayBeSafetensors {
            if bytes.starts(with: "PK\u{3}\u{4}".utf8) || bytes.starts(with: "PK\u{5}\u{6}".utf8) {
                return try TorchFile.contents(of: bytes, path: path)
            }
            if bytes.count > 262, bytes[257..<262].elementsEqual("ustar".utf8) {
                throw .unsupportedFormat(
                    file: path,
                    found: "a tar archive, as PyTorch wrote before version 0.1.10",
                    advice: "get the model as .safetensors"
                )
            }
            // A pickle begins with its protocol, or, in the oldest protocol, often with an import.
            if bytes.count > 8, (bytes[0] == 0x80 && 1...9 ~= bytes[1]) || TorchFile.beginsWithImport(bytes) {
                throw TorchFile.refusalOfBarePickle(bytes, path: path)
            }
        }
        return try Safetensors.contents(of: bytes, path: path)
    }

    /// Gives the stored bytes of a tensor in the order of its shape, at any alignment, to `body`.
    ///
    /// The pointer is valid only within it. The pages of a large tensor leave the process's memory afterwards (they stay in the system's page
    /// cache): a model on its way to the device is not to be resident twice. Only a tensor with strides is copied.
    ///
    /// - Throws: `WeightsError.malformed` for strides that repeat elements, and what `body` throws.
    package func withBytes<Result>(
        of entry: Entry,
        _ body: (UnsafeRawBufferPointer) throws -> Result
    ) throws -> Result {
        // The mapping ends with its owner, which the optimiser may release after the last use of `self`.
        try withExtendedLifetime(mapping) {
            defer { mapping.releasePages(entry.range) }
            let bytes = UnsafeRawBufferPointer(rebasing: mapping.bytes[entry.range])
            guard let strides = entry.strides else { return try body(bytes) }
            guard let size = entry.type?.size, entry.count <= bytes.count / size else {
                throw WeightsError.malformed(
                    file: path,
                    reason: "a tensor \(entry.shape) with strides \(strides) repeats elements; save a contiguous one"
                )
            }
            let ordered = entry.gathered(from: bytes, strides: strides, elementSize: size)
            return try ordered.withUnsafeBytes(body)
        }
    }
}

extension WeightFile.Entry {
    /// Strides of elements that follow each other in the order of a shape.
    static func contiguousStrides(_ shape: [Int]) -> [Int] {
        var strides = [Int](repeating: 1, count: shape.count)
        for index in shape.indices.reversed().dropFirst() {
            strides[index] = strides[index + 1] * max(shape[index + 1], 1)
        }
        return strides
    }

    /// Whether elements follow each other in the order of a shape; the stride of a dimension of one element says nothing.
    private static func areContiguous(_ strides: [Int], _ shape: [Int]) -> Bool {
        if shape.contains(0) { return true }
        return zip(zip(shape, strides), contiguousStrides(shape)).allSatisfy { $0.0 == 1 || $0.1 == $1 }
    }

    /// The tensor as a model asks for it: a part of its rows, or transposed.
    ///
    /// - Returns: Nil when the tensor cannot be taken apart that way, or is of an unknown type.
    func view(_ stored: StoredTensor) -> WeightFile.Entry? {
        guard stored.part != nil || stored.isTransposed else { return self }
        // A shape without elements can have others that no memory holds.
        guard let size = type?.size, let rows = shape.first, !shape.contains(0) else { return nil }
        var (shape, strides, range) = (shape, strides ?? Self.contiguousStrides(shape), range)
        if let part = stored.part {
            guard rows.isMultiple(of: part.count) else { return nil }
            shape[0] = rows / part.count
            let start = range.lowerBound + part.index * shape[0] * strides[0] * size
            let span = zip(shape, strides).reduce(1) { $0 + ($1.0 - 1) * $1.1 }
            guard start + span * size <= range.upperBound else { return nil }
            range = start..<(start + span * size)
        }
        if stored.isTransposed {
            guard shape.count == 2 else { return nil }
            shape.swapAt(0, 1)
            strides.swapAt(0, 1)
        }
        return WeightFile.Entry(typeName: typeName, type: type, shape: shape, strides: strides, range: range)
    }

    /// The elements in the order of the shape, from bytes that begin with the first of them.
    fileprivate func gathered(from bytes: UnsafeRawBufferPointer, strides: [Int], elementSize: Int) -> [UInt8] {
        let (count, rank) = (count, shape.count)
        guard count > 0, rank > 0, let source = bytes.baseAddress else { return [] }
        let (inner, stride) = (shape[rank - 1], strides[rank - 1] * elementSize)
        return [UInt8](unsafeUninitializedCapacity: count * elementSize) { output, written in
            guard var target = UnsafeMutableRawPointer(output.baseAddress) else { return }
            var index = [Int](repeating: 0, count: rank)
            var offset = 0
            for _ in 0..<(count / inner) {
                if stride == elementSize {
                    target.copyMemory(from: source + offset, byteCount: inner * elementSize)
                    target += inner * elementSize
                } else {
                    for element in 0..<inner {
                        target.copyMemory(from: source + offset + element * stride, byteCount: elementSize)
                        target += elementSize
                    }
                }
                // The next row, as an odometer counts.
                var dimension = rank - 2
                while dimension >= 0 {
                    index[dimension] += 1
                    offset += strides[dimension] * elementSize
                    if index[dimension] < shape[dimension] { break }
                    offset -= shape[dimension] * strides[dimension] * elementSize
                    index[dimension] = 0
                    dimension -= 1
                }
            }
            written = count * elementSize
        }
    }
}

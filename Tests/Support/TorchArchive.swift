// Writes what PyTorch writes, and what it never would: zip archives and pickles, byte by byte, so that tests can damage and
// poison them.

internal import CZlib

/// A zip archive in the making.
package struct ZipWriter {
    /// What a directory claims about an entry, where it is to be wrong.
    package struct Lies {
        package var size: UInt32?
        package var localName: String?
        package var localOffset: UInt32?
        package var flags: UInt16 = 0

        package init(size: UInt32? = nil, localName: String? = nil, localOffset: UInt32? = nil, flags: UInt16 = 0) {
            self.size = size
            self.localName = localName
            self.localOffset = localOffset
            self.flags = flags
        }
    }

    private var data: [UInt8] = []
    private var directory: [UInt8] = []
    private var count = 0
    private let isZip64: Bool

    /// An archive without entries.
    ///
    /// - Parameter isZip64: Whether all sizes and places are in the fields that large archives need.
    package init(isZip64: Bool = false) {
        self.isZip64 = isZip64
    }

    /// Adds an entry.
    package mutating func add(_ name: String, _ contents: [UInt8], deflated: Bool = false, _ lies: Lies = Lies()) {
        let stored = deflated ? deflate(contents) : contents
        let start = data.count
        let checksum = UInt32(truncatingIfNeeded: crc32_z(0, contents, contents.count))
        let localName = Array((lies.localName ?? name).utf8)
        let size = lies.size ?? UInt32(contents.count)
        let method: UInt16 = deflated ? 8 : 0
        data += bytes(UInt32(0x0403_4B50)) + bytes(UInt16(20)) + bytes(lies.flags) + bytes(method)
        data += bytes(UInt32(0)) + bytes(checksum) + bytes(UInt32(stored.count)) + bytes(size)
        // PyTorch aligns its records with an extra field.
        data += bytes(UInt16(localName.count)) + bytes(UInt16(6)) + localName + Array("FB\u{2}\0ZZ".utf8) + stored
        let offset = lies.localOffset ?? UInt32(start)
        let extra =
            isZip64
            ? bytes(UInt16(1)) + bytes(UInt16(24)) + bytes(UInt64(size)) + bytes(UInt64(stored.count))
                + bytes(UInt64(offset)) : []
        directory += bytes(UInt32(0x0201_4B50)) + bytes(UInt16(20)) + bytes(UInt16(20)) + bytes(lies.flags)
        directory += bytes(method) + bytes(UInt32(0)) + bytes(checksum)
        directory += bytes(isZip64 ? .max : UInt32(stored.count)) + bytes(isZip64 ? .max : size)
        directory += bytes(UInt16(name.utf8.count)) + bytes(UInt16(extra.count)) + bytes(UInt16(0)) + bytes(UInt16(0))
        directory += bytes(UInt16(0)) + bytes(UInt32(0)) + bytes(isZip64 ? .max : offset) + Array(name.utf8) + extra
        count += 1
    }

    /// The archive.
    package func finished(comment: String = "") -> [UInt8] {
        var end: [UInt8] = []
        if isZip64 {
            end += bytes(UInt32(0x0606_4B50)) + bytes(UInt64(44)) + bytes(UInt16(45)) + bytes(UInt16(45))
            end += bytes(UInt32(0)) + bytes(UInt32(0)) + bytes(UInt64(count)) + bytes(UInt64(count))
            end += bytes(UInt64(directory.count)) + bytes(UInt64(data.count))
            end += bytes(UInt32(0x0706_4B50)) + bytes(UInt32(0)) + bytes(UInt64(data.count + directory.count))
            end += bytes(UInt32(1))
        }
        end += bytes(UInt32(0x0605_4B50)) + bytes(UInt16(0)) + bytes(UInt16(0))
        end += bytes(isZip64 ? .max : UInt16(count)) + bytes(isZip64 ? .max : UInt16(count))
        end += bytes(isZip64 ? .max : UInt32(directory.count)) + bytes(isZip64 ? .max : UInt32(data.count))
        return data + directory + end + bytes(UInt16(comment.utf8.count)) + Array(comment.utf8)
    }

    /// A raw deflate stream.
    private func deflate(_ contents: [UInt8]) -> [UInt8] {
        var stream = z_stream()
        let size = Int32(MemoryLayout<z_stream>.size)
        guard
            deflateInit2_(&stream, 9, Z_DEFLATED, -MAX_WBITS, 9, Z_DEFAULT_STRATEGY, ZLIB_VERSION, size) == Z_OK
        else { return [] }
        defer { deflateEnd(&stream) }
        var input = contents
        return input.withUnsafeMutableBufferPointer { input in
            let capacity = contents.count + 1024
            return [UInt8](unsafeUninitializedCapacity: capacity) { output, count in
                stream.next_in = input.baseAddress
                stream.avail_in = UInt32(input.count)
                stream.next_out = output.baseAddress
                stream.avail_out = UInt32(capacity)
                _ = CZlib.deflate(&stream, Z_FINISH)
                count = capacity - Int(stream.avail_out)
            }
        }
    }
}

/// A pickle in the making: every method appends the instruction of its name.
package struct PickleWriter {
    /// The instructions so far.
    package private(set) var bytes: [UInt8]

    /// A pickle of a protocol.
    package init(protocol version: UInt8 = 2) {
        bytes = [0x80, version]
    }

    /// Instructions as they are.
    package mutating func raw(_ bytes: [UInt8]) { self.bytes += bytes }

    /// Instructions of one character, such as `(` for MARK.
    package mutating func raw(_ text: String) { bytes += Array(text.utf8) }

    /// BINUNICODE.
    package mutating func text(_ text: String) {
        bytes += Array("X".utf8) + TestSupport.bytes(UInt32(text.utf8.count)) + Array(text.utf8)
    }

    /// BININT, or LONG1 where that is too small.
    package mutating func int(_ value: Int) {
        if let small = Int32(exactly: value) {
            bytes += Array("J".utf8) + TestSupport.bytes(small)
        } else {
            bytes += [0x8A, 8] + TestSupport.bytes(value)
        }
    }

    /// GLOBAL.
    package mutating func global(_ module: String, _ name: String) { raw("c\(module)\n\(name)\n") }

    /// A tuple of numbers.
    package mutating func tuple(_ values: [Int]) {
        raw("(")
        for value in values { int(value) }
        raw("t")
    }

    /// A tensor on a storage of its own, as `torch.save` writes it.
    package mutating func tensor(
        key: String,
        storage: String = "FloatStorage",
        count: Int,
        offset: Int = 0,
        shape: [Int],
        strides: [Int]? = nil
    ) {
        global("torch._utils", "_rebuild_tensor_v2")
        raw("((")
        text("storage")
        global("torch", storage)
        text(key)
        text("cpu")
        int(count)
        raw("tQ")
        int(offset)
        tuple(shape)
        tuple(strides ?? shape.indices.map { shape[($0 + 1)...].reduce(1, *) })
        raw([0x89])
        global("collections", "OrderedDict")
        raw(")RtR")
    }
}

/// A file of PyTorch's with tensors of 32-bit floats.
///
/// - Parameters:
///   - tensors: Names, shapes and elements.
///   - numbers: Whole numbers beside the `state_dict`; nil leaves the tensors at the root.
package func torchFile(_ tensors: [SafetensorsTensor], numbers: [String: Int]? = nil) -> [UInt8] {
    var pickle = PickleWriter()
    pickle.raw("}(")
    if let numbers {
        for (name, value) in numbers.sorted(by: { $0.key < $1.key }) {
            pickle.text(name)
            pickle.int(value)
        }
        pickle.text("state_dict")
        pickle.raw("}(")
    }
    for (index, tensor) in tensors.enumerated() {
        pickle.text(tensor.name)
        pickle.tensor(key: "\(index)", count: tensor.values.count, shape: tensor.shape)
    }
    pickle.raw(numbers == nil ? "u." : "uu.")
    var archive = ZipWriter()
    archive.add("archive/data.pkl", pickle.bytes)
    for (index, tensor) in tensors.enumerated() {
        archive.add("archive/data/\(index)", tensor.values.withUnsafeBytes(Array.init))
    }
    archive.add("archive/version", Array("3\n".utf8))
    return archive.finished()
}

/// The little-endian bytes of an integer.
package func bytes<Value: FixedWidthInteger>(_ value: Value) -> [UInt8] {
    withUnsafeBytes(of: value.littleEndian) { Array($0) }
}

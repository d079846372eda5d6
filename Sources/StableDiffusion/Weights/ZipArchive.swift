// The directory of a zip archive (PKWARE's APPNOTE 6.3.10, with zip64), as far as PyTorch's files need it. An archive is
// downloaded and may have been made to deceive: entries that overlap, leave the file or are named differently in their two
// places are errors, and nothing is ever unpacked but one small entry whose size is bounded.

internal import CZlib

/// A checked directory of a zip archive.
struct ZipArchive {
    /// One file of the archive.
    struct Entry: Equatable {
        /// How it is stored: 0 as it is, 8 deflated; nothing else is read here.
        let method: Int
        /// Whether it is encrypted.
        let isEncrypted: Bool
        /// Its bytes in the archive.
        let range: Range<Int>
        /// Bytes once unpacked, as the directory claims.
        let size: Int
        /// CRC-32 of the unpacked bytes, as the directory claims.
        let checksum: UInt32
    }

    /// What is wrong with an archive.
    enum Failure: Error, Equatable {
        /// It ends too early.
        case truncated(String)
        /// It contradicts itself.
        case malformed(String)
    }

    /// Entries by name.
    let entries: [String: Entry]

    private static let endSignature: UInt32 = 0x0605_4B50
    private static let end64Signature: UInt32 = 0x0606_4B50
    private static let locator64Signature: UInt32 = 0x0706_4B50
    private static let localSignature: UInt32 = 0x0403_4B50

    /// Reads the directory of an archive, which is the whole of `bytes`.
    init(_ bytes: UnsafeRawBufferPointer) throws(Failure) {
        let directory = try Self.directory(bytes)
        var entries: [String: Entry] = [:]
        var extents: [(name: String, range: Range<Int>)] = []
        var offset = directory.range.lowerBound
        for _ in 0..<directory.count {
            let record = try DirectoryRecord(bytes, at: offset, end: directory.range.upperBound)
            offset = record.end
            let start = try Self.dataStart(of: record, bytes, end: directory.range.lowerBound)
            let (dataEnd, overflow) = start.addingReportingOverflow(record.compressedSize)
            guard !overflow, dataEnd <= directory.range.lowerBound else {
                throw .malformed("\"\(record.shortName)\" reaches beyond the archive's data")
            }
            let entry = Entry(
                method: record.method,
                isEncrypted: record.flags & 1 != 0,
                range: start..<dataEnd,
                size: record.size,
                checksum: record.checksum
            )
            guard entries.updateValue(entry, forKey: record.name) == nil else {
                throw .malformed("\"\(record.shortName)\" is in it twice")
            }
            extents.append((record.name, record.localOffset..<dataEnd))
        }
        guard offset == directory.range.upperBound else {
            throw .malformed("its directory has another length than it says")
        }
        extents.sort { $0.range.lowerBound < $1.range.lowerBound }
        for (entry, next) in zip(extents, extents.dropFirst()) where entry.range.upperBound > next.range.lowerBound {
            throw .malformed("\"\(next.name.prefix(200))\" overlaps \"\(entry.name.prefix(200))\"")
        }
        self.entries = entries
    }

    /// The unpacked bytes of an entry.
    ///
    /// - Parameters:
    ///   - bytes: The whole archive.
    ///   - maximumBytes: A larger entry is refused before anything is allocated.
    static func contents(
        of entry: Entry,
        in bytes: UnsafeRawBufferPointer,
        maximumBytes: Int
    ) throws(Failure) -> [UInt8] {
        guard !entry.isEncrypted else { throw .malformed("it is encrypted") }
        guard entry.size <= maximumBytes else {
            throw .malformed("it unpacks to \(entry.size) bytes, more than the \(maximumBytes) allowed here")
        }
        let packed = UnsafeRawBufferPointer(rebasing: bytes[entry.range])
        switch entry.method {
        case 0:
            guard entry.size == packed.count else { throw .malformed("its two sizes differ") }
            return Array(packed)
        case 8:
            guard let unpacked = inflate(packed, size: entry.size) else {
                throw .malformed("its compressed bytes are damaged")
            }
            guard UInt32(truncatingIfNeeded: crc32_z(0, unpacked, unpacked.count)) == entry.checksum else {
                throw .malformed("its checksum is wrong")
            }
            return unpacked
        default: throw .malformed("it is compressed in a way (\(entry.method)) that PyTorch does not read either")
        }
    }

    /// Inflates a raw deflate stream of known size; nil when it is damaged, or longer or shorter than that.
    private static func inflate(_ packed: UnsafeRawBufferPointer, size: Int) -> [UInt8]? {
        guard packed.count <= Int(UInt32.max), size <= Int(UInt32.max) else { return nil }
        var stream = z_stream()
        // The window without a header, as zip has it.
        let streamSize = Int32(MemoryLayout<z_stream>.size)
        guard inflateInit2_(&stream, -MAX_WBITS, ZLIB_VERSION, streamSize) == Z_OK else { return nil }
        defer { inflateEnd(&stream) }
        var isComplete = false
        // One byte more, so that a stream that is longer than it says is seen to be.
        let unpacked = [UInt8](unsafeUninitializedCapacity: size + 1) { output, count in
            stream.next_in = UnsafeMutablePointer(mutating: packed.bindMemory(to: UInt8.self).baseAddress)
            stream.avail_in = UInt32(packed.count)
            stream.next_out = output.baseAddress
            stream.avail_out = UInt32(size + 1)
            isComplete = CZlib.inflate(&stream, Z_FINISH) == Z_STREAM_END
            count = size + 1 - Int(stream.avail_out)
        }
        return isComplete && unpacked.count == size && stream.avail_in == 0 ? unpacked : nil
    }

    // MARK: - The directory

    /// Where the directory is, and how many entries it has.
    private static func directory(_ bytes: UnsafeRawBufferPointer) throws(Failure) -> (range: Range<Int>, count: Int) {
        guard let end = endRecord(bytes) else {
            throw .truncated("it begins as a zip archive, but its directory, which comes last, is not there")
        }
        guard bytes.integer(end + 4, UInt16.self) == 0, bytes.integer(end + 6, UInt16.self) == 0 else {
            throw .malformed("it is one part of a divided archive")
        }
        var count = bytes.integer(end + 10, UInt16.self).map(UInt64.init) ?? 0
        var size = bytes.integer(end + 12, UInt32.self).map(UInt64.init) ?? 0
        var start = bytes.integer(end + 16, UInt32.self).map(UInt64.init) ?? 0
        var directoryEnd = end
        let locator = end - 20
        // PyTorch writes the directory of large archives into small ones as well; the numbers of the small one then have to agree.
        if locator >= 0, bytes.integer(locator, UInt32.self) == locator64Signature {
            guard let position = bytes.integer(locator + 8, UInt64.self), position <= UInt64(locator),
                bytes.integer(Int(position), UInt32.self) == end64Signature,
                let count64 = bytes.integer(Int(position) + 32, UInt64.self),
                let size64 = bytes.integer(Int(position) + 40, UInt64.self),
                let start64 = bytes.integer(Int(position) + 48, UInt64.self)
            else { throw .malformed("its zip64 directory is not where it should be") }
            guard count == count64 || count == 0xFFFF, size == size64 || size == 0xFFFF_FFFF,
                start == start64 || start == 0xFFFF_FFFF
            else { throw .malformed("its two directories differ") }
            (count, size, start) = (count64, size64, start64)
            directoryEnd = Int(position)
        }
        guard start <= UInt64(directoryEnd), size == UInt64(directoryEnd) - start else {
            throw .malformed("its directory is not where it should be")
        }
        guard count <= size / UInt64(DirectoryRecord.minimumSize) else {
            throw .malformed("its directory is too small for \(count) entries")
        }
        return (Int(start)..<directoryEnd, Int(count))
    }

    /// The record that ends an archive; only a comment may follow it, to the last byte of the file.
    private static func endRecord(_ bytes: UnsafeRawBufferPointer) -> Int? {
        let size = 22
        guard bytes.count >= size else { return nil }
        for comment in 0...min(bytes.count - size, 0xFFFF) {
            let position = bytes.count - size - comment
            if bytes.integer(position, UInt32.self) == endSignature,
                bytes.integer(position + 20, UInt16.self) == UInt16(comment)
            {
                return position
            }
        }
        return nil
    }

    /// Where the bytes of an entry begin: after its local header, which must name the same file.
    private static func dataStart(
        of record: DirectoryRecord,
        _ bytes: UnsafeRawBufferPointer,
        end: Int
    ) throws(Failure) -> Int {
        let headerSize = 30
        let offset = record.localOffset
        guard offset <= end - headerSize, bytes.integer(offset, UInt32.self) == localSignature,
            let nameLength = bytes.integer(offset + 26, UInt16.self).map(Int.init),
            let extraLength = bytes.integer(offset + 28, UInt16.self).map(Int.init),
            offset + headerSize + nameLength + extraLength <= end
        else { throw .malformed("\"\(record.shortName)\" is not where the directory says") }
        guard bytes[(offset + headerSize)..<(offset + headerSize + nameLength)].elementsEqual(record.name.utf8) else {
            throw .malformed("\"\(record.shortName)\" has another name in the directory than in its place")
        }
        return offset + headerSize + nameLength + extraLength
    }
}

/// One record of the directory.
private struct DirectoryRecord {
    static let minimumSize = 46
    private static let signature: UInt32 = 0x0201_4B50

    let flags: UInt16
    let method: Int
    let checksum: UInt32
    let compressedSize: Int
    let size: Int
    let name: String
    let localOffset: Int
    /// Where the next record begins.
    let end: Int

    /// The name as far as it fits a message.
    var shortName: Substring { name.prefix(200) }

    init(_ bytes: UnsafeRawBufferPointer, at offset: Int, end limit: Int) throws(ZipArchive.Failure) {
        guard offset <= limit - Self.minimumSize, bytes.integer(offset, UInt32.self) == Self.signature,
            let flags = bytes.integer(offset + 8, UInt16.self), let method = bytes.integer(offset + 10, UInt16.self),
            let checksum = bytes.integer(offset + 16, UInt32.self),
            let nameLength = bytes.integer(offset + 28, UInt16.self).map(Int.init),
            let extraLength = bytes.integer(offset + 30, UInt16.self).map(Int.init),
            let commentLength = bytes.integer(offset + 32, UInt16.self).map(Int.init),
            offset + Self.minimumSize + nameLength + extraLength + commentLength <= limit
        else { throw .malformed("its directory is damaged") }
        let nameStart = offset + Self.minimumSize
        guard
            let name = String(
                validating: UnsafeRawBufferPointer(rebasing: bytes[nameStart..<(nameStart + nameLength)]),
                as: UTF8.self
            )
        else { throw .malformed("a name in its directory is not UTF-8") }
        // Numbers that do not fit their 32 bits are in an extra field, in this order.
        var numbers: [UInt64] = []
        for position in [24, 20, 42] {
            numbers.append(UInt64(bytes.integer(offset + position, UInt32.self) ?? 0))
        }
        if numbers.contains(0xFFFF_FFFF) {
            let extra = (nameStart + nameLength)..<(nameStart + nameLength + extraLength)
            try Self.extend(&numbers, bytes, extra, name: name)
        }
        // A file has no more bytes than a positive Int counts.
        guard let size = Int(exactly: numbers[0]), let compressed = Int(exactly: numbers[1]),
            let local = Int(exactly: numbers[2])
        else { throw .malformed("\"\(name.prefix(200))\" is larger than any file") }
        self.flags = flags
        self.method = Int(method)
        self.checksum = checksum
        self.name = name
        self.size = size
        compressedSize = compressed
        localOffset = local
        end = nameStart + nameLength + extraLength + commentLength
    }

    /// Reads the zip64 field among the extra fields of a record.
    private static func extend(
        _ numbers: inout [UInt64],
        _ bytes: UnsafeRawBufferPointer,
        _ extra: Range<Int>,
        name: String
    ) throws(ZipArchive.Failure) {
        var offset = extra.lowerBound
        while offset + 4 <= extra.upperBound, let id = bytes.integer(offset, UInt16.self),
            let length = bytes.integer(offset + 2, UInt16.self).map(Int.init), offset + 4 + length <= extra.upperBound
        {
            if id == 1 {
                var position = offset + 4
                for index in numbers.indices where numbers[index] == 0xFFFF_FFFF {
                    guard position + 8 <= offset + 4 + length, let number = bytes.integer(position, UInt64.self) else {
                        throw .malformed("\"\(name.prefix(200))\" has a zip64 field that is too short")
                    }
                    numbers[index] = number
                    position += 8
                }
                return
            }
            offset += 4 + length
        }
        throw .malformed("\"\(name.prefix(200))\" has no zip64 field, but numbers that need one")
    }
}

extension UnsafeRawBufferPointer {
    /// A little-endian integer at any alignment; nil when it is not wholly within the buffer.
    func integer<Value: FixedWidthInteger>(_ offset: Int, _ type: Value.Type) -> Value? {
        let size = MemoryLayout<Value>.size
        guard offset >= 0, count >= size, offset <= count - size else { return nil }
        return Value(littleEndian: loadUnaligned(fromByteOffset: offset, as: Value.self))
    }
}

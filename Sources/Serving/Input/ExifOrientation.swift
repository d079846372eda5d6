// How a photograph lies in its file: cameras store what the sensor saw, and say in the Exif block how it was held (JEITA CP-3451, Exif 2.32,
// 4.6.4; TIFF 6.0, section 2). The block is anybody's bytes: every read is bounded, and a damaged one turns nothing.

/// The orientation of a picture in its file, tag 274 of Exif.
struct ExifOrientation: Equatable {
    /// 1 to 8.
    let value: Int

    /// As it is to be seen.
    static let upright = ExifOrientation(value: 1)

    private init(value: Int) {
        self.value = value
    }

    /// What a JPEG file says; upright where it says nothing.
    init(ofJPEG bytes: [UInt8]) {
        self = Self.exif(of: bytes).flatMap { Self(tiff: $0) } ?? .upright
    }

    /// What a PNG file says in its `eXIf` chunk (PNG 3rd edition, 11.3.5.2); upright where it says nothing.
    init(ofPNG bytes: [UInt8]) {
        self = Self.chunk(of: bytes).flatMap { Self(tiff: $0) } ?? .upright
    }

    /// The orientation in the first directory of a TIFF structure; nil where there is none that means anything.
    private init?(tiff bytes: ArraySlice<UInt8>) {
        let isLittleEndian: Bool
        switch Array(bytes.prefix(4)) {
        case [0x49, 0x49, 0x2A, 0]: isLittleEndian = true
        case [0x4D, 0x4D, 0, 0x2A]: isLittleEndian = false
        default: return nil
        }
        func number(_ offset: Int, _ count: Int) -> Int? {
            guard offset + count <= bytes.count else { return nil }
            let start = bytes.startIndex + offset
            let digits = bytes[start..<start + count]
            return (isLittleEndian ? Array(digits.reversed()) : Array(digits)).reduce(0) { $0 << 8 | Int($1) }
        }
        guard let directory = number(4, 4), let count = number(directory, 2) else { return nil }
        for index in 0..<count {
            let entry = directory + 2 + 12 * index
            guard let tag = number(entry, 2) else { return nil }
            guard tag == 0x0112 else { continue }
            // One SHORT, which stands in the entry itself.
            guard number(entry + 2, 2) == 3, number(entry + 4, 4) == 1,
                let value = number(entry + 8, 2), 1...8 ~= value
            else { return nil }
            self.value = value
            return
        }
        return nil
    }

    /// The TIFF structure of a PNG file's first `eXIf` chunk, which may stand before the picture or after it.
    private static func chunk(of bytes: [UInt8]) -> ArraySlice<UInt8>? {
        // After the signature; a chunk is its length, its name, its data and a checksum.
        var position = 8
        while position + 12 <= bytes.count {
            let length = bytes[position..<position + 4].reduce(0) { $0 << 8 | Int($1) }
            let end = position + 12 + length
            guard end <= bytes.count else { return nil }
            if bytes[(position + 4)..<(position + 8)].elementsEqual("eXIf".utf8) {
                return bytes[(position + 8)..<(end - 4)]
            }
            position = end
        }
        return nil
    }

    /// The TIFF structure of a JPEG file's first Exif segment.
    private static func exif(of bytes: [UInt8]) -> ArraySlice<UInt8>? {
        let name = Array("Exif\0\0".utf8)
        // After the marker that begins the file.
        var position = 2
        while position + 4 <= bytes.count, bytes[position] == 0xFF {
            switch bytes[position + 1] {
            // Bytes that fill up.
            case 0xFF: position += 1
            // Markers without a segment.
            case 0x01, 0xD0...0xD8: position += 2
            // The picture begins, or the file ends.
            case 0xDA, 0xD9: return nil
            case let marker:
                let end = position + 2 + Int(bytes[position + 2]) << 8 + Int(bytes[position + 3])
                guard position + 4 <= end, end <= bytes.count else { return nil }
                let segment = bytes[(position + 4)..<end]
                if marker == 0xE1, segment.starts(with: name) { return segment.dropFirst(name.count) }
                position = end
            }
        }
        return nil
    }
}

extension DecodedPicture {
    /// A picture that lies in its file as `orientation` says, as it is to be seen.
    func turned(_ orientation: ExifOrientation) -> DecodedPicture {
        guard orientation != .upright else { return self }
        let isSideways = orientation.value >= 5
        let reversesColumns = [2, 3, 7, 8].contains(orientation.value)
        let reversesRows = [3, 4, 6, 7].contains(orientation.value)
        var result = self
        if isSideways { (result.width, result.height) = (height, width) }
        for y in 0..<result.height {
            for x in 0..<result.width {
                var (column, row) = isSideways ? (y, x) : (x, y)
                if reversesColumns { column = width - 1 - column }
                if reversesRows { row = height - 1 - row }
                let (from, to) = ((row * width + column) * channels, (y * result.width + x) * channels)
                for channel in 0..<channels { result.pixels[to + channel] = pixels[from + channel] }
            }
        }
        return result
    }
}

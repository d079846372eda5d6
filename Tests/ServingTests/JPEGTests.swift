// JPEG files of every kind and orientation against Pillow (scripts/fixtures/jpeg_files.py), damaged ones, and the Exif block alone.

import CZlib
import Foundation
import JSON
@testable import Serving
import StableDiffusion
import TestSupport
import Testing

@Suite struct JPEGTests {
    private struct File {
        let name: String
        let bytes: [UInt8]
        let width: Int
        let height: Int
        let rgb: [Int]
        let grey: [Int]
    }

    private static let files = Result {
        try (Fixture.json("jpeg-files.json")["files"]?.arrayValue ?? []).map { file in
            File(
                name: file["name"]?.stringValue ?? "",
                bytes: Array(try #require(Data(base64Encoded: file["jpeg"]?.stringValue ?? ""))),
                width: file["width"]?.integerValue ?? 0,
                height: file["height"]?.integerValue ?? 0,
                rgb: file["rgb"]?.integers ?? [],
                grey: file["grey"]?.integers ?? []
            )
        }
    }

    private func file(_ name: String) throws -> File {
        try #require(Self.files.get().first { $0.name == name })
    }

    private func difference(_ pixels: [UInt8], _ expected: [Int]) -> Int {
        guard pixels.count == expected.count else { return 255 }
        return zip(pixels, expected).map { abs(Int($0) - $1) }.max() ?? 255
    }

    @Test func everyKindIsReadAsPillowReadsIt() throws {
        let files = try Self.files.get()
        #expect(files.count == 17)
        for file in files {
            let picture = try DecodedPicture.rgb(file.bytes)
            #expect(picture.width == file.width && picture.height == file.height, "\(file.name)")
            let colors = difference(picture.pixels, file.rgb)
            let brightness = difference(try DecodedPicture.brightness(file.bytes).pixels, file.grey)
            #expect(colors <= 1 && brightness <= 1, "\(file.name): \(colors), \(brightness)")
        }
    }

    @Test func everyOrientationIsUndone() throws {
        // What each value of the tag makes of two rows, "abc" over "def", as Exif draws them.
        let seen = [
            1: "abc/def", 2: "cba/fed", 3: "fed/cba", 4: "def/abc", 5: "ad/be/cf", 6: "da/eb/fc", 7: "fc/eb/da",
            8: "cf/be/ad",
        ]
        let stored = DecodedPicture(width: 3, height: 2, pixels: Array("abcdef".utf8), channels: 1)
        for (value, rows) in seen {
            let turned = stored.turned(ExifOrientation(ofJPEG: Self.jpeg(orientation: value)))
            let lines = rows.split(separator: "/")
            #expect(turned.width == lines[0].count && turned.height == lines.count, "\(value)")
            #expect(turned.pixels == Array(lines.joined().utf8), "\(value)")
        }
    }

    /// The beginning of a file that says how it lies: an Exif block with one entry.
    private static func jpeg(
        orientation: Int,
        tag: Int = 0x0112,
        type: Int = 3,
        count: Int = 1,
        directory: Int = 8,
        isLittleEndian: Bool = true
    ) -> [UInt8] {
        func number(_ value: Int, _ bytes: Int) -> [UInt8] {
            let big = (0..<bytes).map { UInt8(truncatingIfNeeded: value >> (8 * (bytes - 1 - $0))) }
            return isLittleEndian ? big.reversed() : big
        }
        let block =
            Array("Exif\0\0".utf8) + Array((isLittleEndian ? "II" : "MM").utf8) + number(42, 2) + number(directory, 4)
            + number(1, 2) + number(tag, 2) + number(type, 2) + number(count, 4) + number(orientation, 2) + [0, 0]
        return [0xFF, 0xD8, 0xFF, 0xE1, 0, UInt8(block.count + 2)] + block + [0xFF, 0xDA]
    }

    /// A PNG file says it in a chunk of its own, before the picture or after it; cut short or damaged it turns nothing.
    @Test(arguments: [true, false])
    func pngFilesAreTurned(_ isBefore: Bool) throws {
        let pixels = (1...6).flatMap { [UInt8](repeating: $0 * 40, count: 3) }
        let plain = try PNGEncoder.encode(pixels: pixels, width: 3, height: 2)
        func chunk(_ data: [UInt8]) -> [UInt8] {
            let body = Array("eXIf".utf8) + data
            let checksum = body.withUnsafeBufferPointer { crc32(0, $0.baseAddress, uInt(body.count)) }
            func number(_ value: Int) -> [UInt8] { [24, 16, 8, 0].map { UInt8(truncatingIfNeeded: value >> $0) } }
            return number(data.count) + body + number(Int(checksum))
        }
        // After the first chunk, IHDR of 13 bytes, or before the last, IEND of none.
        let position = isBefore ? 8 + 25 : plain.count - 12
        func file(_ data: [UInt8]) -> [UInt8] { plain.prefix(position) + chunk(data) + plain.dropFirst(position) }
        let block = Array(Self.jpeg(orientation: 6).dropFirst(12).dropLast(2))
        let turned = try DecodedPicture.rgb(file(block))
        #expect(turned.width == 2 && turned.height == 3)
        #expect(stride(from: 0, to: 18, by: 3).map { turned.pixels[$0] / 40 } == [4, 1, 5, 2, 6, 3])
        #expect(try DecodedPicture.rgb(file(Array(block.prefix(12)))).pixels == pixels)
        for length in 0..<position + 20 {
            #expect(ExifOrientation(ofPNG: Array(file(block).prefix(length))) == .upright, "\(length)")
        }
    }

    @Test func whatMeansNothingTurnsNothing() {
        #expect(ExifOrientation(ofJPEG: Self.jpeg(orientation: 6)).value == 6)
        #expect(ExifOrientation(ofJPEG: Self.jpeg(orientation: 6, isLittleEndian: false)).value == 6)
        for bytes in [
            [], [0xFF, 0xD8], [0xFF, 0xD8, 0xFF, 0xE1], [0xFF, 0xD8, 0xFF, 0xE1, 0, 0], Self.jpeg(orientation: 0),
            Self.jpeg(orientation: 9),
            Self.jpeg(orientation: 6, tag: 0x0113), Self.jpeg(orientation: 6, type: 4),
            Self.jpeg(orientation: 6, count: 2),
            Self.jpeg(orientation: 6, directory: 0xFFFF_FFFF), Self.jpeg(orientation: 6, directory: 30),
            [0xFF, 0xD8, 0xFF, 0xDA] + Self.jpeg(orientation: 6).dropFirst(2),
        ] as [[UInt8]] {
            #expect(ExifOrientation(ofJPEG: bytes) == .upright, "\(bytes)")
        }
        let whole = Self.jpeg(orientation: 6)
        // Without its last byte the segment is no longer whole.
        for length in 0..<whole.count - 2 {
            #expect(ExifOrientation(ofJPEG: Array(whole.prefix(length))) == .upright, "\(length)")
        }
        var random = SplitMix64(state: 11)
        for _ in 0..<20_000 {
            var damaged = whole
            for _ in 0..<Int.random(in: 1...4, using: &random) {
                damaged[Int.random(in: 2..<damaged.count, using: &random)] = .random(in: 0...255, using: &random)
            }
            #expect(1...8 ~= ExifOrientation(ofJPEG: damaged).value)
        }
    }

    @Test func damagedFilesAreRefused() throws {
        var random = SplitMix64(state: 10)
        var (read, refused) = (0, 0)
        for file in try Self.files.get() {
            for length in stride(from: file.bytes.count - 1, to: 2, by: -7) {
                #expect(throws: PictureError.self, "\(file.name), \(length) bytes") {
                    try DecodedPicture.rgb(Array(file.bytes.prefix(length)))
                }
            }
            for _ in 0..<300 {
                var damaged = file.bytes
                for _ in 0..<Int.random(in: 1...4, using: &random) {
                    damaged[Int.random(in: 3..<damaged.count, using: &random)] ^=
                        1 << UInt8.random(in: 0...7, using: &random)
                }
                // Whatever it is, it is a picture or an error.
                if let picture = try? DecodedPicture.rgb(damaged) {
                    #expect(picture.pixels.count == picture.width * picture.height * 3)
                    read += 1
                } else {
                    refused += 1
                }
            }
        }
        #expect(read > 0 && refused > 0)
    }

    @Test func sizesAreCheckedBeforeDecoding() throws {
        var huge = try file("4:2:0").bytes
        // The header of the frame: marker, length, precision, height, width.
        let frame = try #require((0..<huge.count - 1).first { huge[$0] == 0xFF && huge[$0 + 1] == 0xC0 })
        huge.replaceSubrange(frame + 5..<frame + 9, with: [0x20, 0, 0x20, 0])
        let error = try #require(throws: PictureError.self) { try DecodedPicture.rgb(huge) }
        #expect(error.description.contains("8192x8192 pixels; allowed are"), "\(error)")
    }

    @Test func aRequestCarriesAPhotographAndAMask() throws {
        let photograph = try file("orientation 6")
        let schema = GenerateSchema(configuration: Configuration(), nativeSize: 64)
        let image = Data(photograph.bytes).base64EncodedString()
        let body = "{\"prompt\": \"a\", \"image\": \"\(image)\", \"mask\": \"\(image)\", \"width\": 16, \"height\": 24}"
        let source = try #require(try schema.decode(Array(body.utf8)).request.source)
        let upright = try DecodedPicture.rgb(photograph.bytes)
        #expect(upright.width == 6 && upright.height == 10)
        #expect(source.pixels == upright.resized(width: 16, height: 24).pixels)
        #expect(source.mask == (try DecodedPicture.brightness(photograph.bytes).resized(width: 16, height: 24).pixels))
    }
}

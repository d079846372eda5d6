// Pictures that come in: PNG files of every kind and their resizing against Pillow (scripts/fixtures/png_files.py), damaged files, and the
// fields of a request.

import Foundation
import JSON
@testable import Serving
import StableDiffusion
import TestSupport
import Testing

@Suite struct PictureInputTests {
    private static let fixture = Result { try Fixture.json("png-files.json") }

    private func bytes(_ text: JSONValue?) throws -> [UInt8] {
        Array(try #require(Data(base64Encoded: text?.stringValue ?? "")))
    }

    @Test func everyKindOfPNGIsRead() throws {
        let files = try #require(Self.fixture.get()["files"]?.arrayValue)
        #expect(files.count == 6)
        for file in files {
            let picture = try DecodedPicture.rgb(bytes(file["png"]))
            #expect(picture.width == 7 && picture.height == 5)
            let expected = file["rgb"]?.integers ?? []
            // libpng rounds colours on a background and 16 bits by its own tables.
            let difference = zip(picture.pixels, expected).map { abs(Int($0) - $1) }.max() ?? 255
            #expect(picture.pixels.count == expected.count && difference <= 1, "\(file["name"] ?? .null)")
        }
        let grey = try #require(files.first { $0["name"]?.stringValue == "grey" })
        let brightness = try DecodedPicture.brightness(bytes(grey["png"]))
        let expected = grey["rgb"]?.integers ?? []
        #expect(brightness.pixels.map { Int($0) } == stride(from: 0, to: expected.count, by: 3).map { expected[$0] })
    }

    @Test func resizingIsPillows() throws {
        let large = try DecodedPicture.rgb(bytes(Self.fixture.get()["large"]))
        #expect(large.resized(width: large.width, height: large.height) == large)
        for item in try #require(Self.fixture.get()["resized"]?.arrayValue) {
            let (width, height) = (item["width"]?.integerValue ?? 0, item["height"]?.integerValue ?? 0)
            let picture = large.resized(width: width, height: height)
            let expected = item["rgb"]?.integers ?? []
            let difference = zip(picture.pixels, expected).map { abs(Int($0) - $1) }.max() ?? 255
            #expect(
                picture.width == width && picture.pixels.count == expected.count && difference <= 1,
                "\(width)x\(height)"
            )
        }
    }

    @Test func damagedFilesAreRefused() throws {
        let files = try #require(Self.fixture.get()["files"]?.arrayValue)
        var random = SplitMix64(state: 9)
        for file in files {
            let whole = try bytes(file["png"])
            #expect(throws: PictureError.self) { try DecodedPicture.rgb(Array(whole.prefix(40))) }
            for _ in 0..<300 {
                var damaged = whole
                for _ in 0..<Int.random(in: 1...4, using: &random) {
                    damaged[Int.random(in: 8..<damaged.count, using: &random)] = .random(in: 0...255, using: &random)
                }
                // Whatever it is, it is a picture or an error.
                if let picture = try? DecodedPicture.rgb(damaged) {
                    #expect(picture.pixels.count == picture.width * picture.height * 3)
                }
            }
        }
        for (bytes, words) in [
            ([], "neither a PNG"), ([0xFF, 0xD8, 0xFF, 0xE0], "the JPEG file"), (Array("RIFF....WEBP".utf8), "WebP"),
            (Array("GIF89a".utf8), "neither a PNG"),
        ] as [([UInt8], String)] {
            let error = #expect(throws: PictureError.self) { try DecodedPicture.rgb(bytes) }
            #expect(error?.description.contains(words) ?? false)
        }
        // A header that claims more pixels than there could be.
        var huge = try bytes(files[0]["png"])
        huge.replaceSubrange(16..<24, with: [0, 1, 0, 0, 0, 1, 0, 0])
        #expect(throws: PictureError.self) { try DecodedPicture.rgb(huge) }
        // One that would be as large on its way to another size.
        let long = try PNGEncoder.encode(pixels: [UInt8](repeating: 9, count: 3 * 20_000), width: 1, height: 20_000)
        #expect(throws: PictureError.self) { try DecodedPicture.rgb(long) }
    }

    // MARK: Requests

    private func decode(_ fields: String) throws -> GenerationRequest {
        try GenerateSchema(configuration: Configuration(), nativeSize: 64)
            .decode(Array("{\"prompt\": \"a\", \(fields)}".utf8)).request
    }

    private func png(_ width: Int, _ height: Int) throws -> String {
        let pixels = (0..<width * height * 3).map { UInt8($0 % 251) }
        return Data(try PNGEncoder.encode(pixels: pixels, width: width, height: height)).base64EncodedString()
    }

    /// A model whose latents are halved more often takes fewer sizes.
    @Test(arguments: [(8, 64, 40), (32, 64, 32), (64, 64, 64)])
    func aPicturesOwnSizeSuitsTheModel(_ multiple: Int, _ width: Int, _ height: Int) throws {
        let image = try png(70, 47)
        let request = try GenerateSchema(configuration: Configuration(), nativeSize: 64, sizeMultiple: multiple)
            .decode(Array("{\"prompt\": \"a\", \"image\": \"\(image)\"}".utf8)).request
        #expect(request.width == width && request.height == height)
    }

    /// A photograph larger than what is allowed keeps its shape.
    @Test(arguments: [
        (4032, 3024, 2048, 1536), (3024, 4032, 1536, 2048), (2048, 2048, 2048, 2048), (4096, 100, 2048, 48),
        (16384, 3, 2048, 8), (6000, 4000, 2048, 1360), (1000, 500, 1000, 496),
    ])
    func aPicturesOwnSizeKeepsItsShape(_ width: Int, _ height: Int, _ ownWidth: Int, _ ownHeight: Int) {
        let picture = DecodedPicture(width: width, height: height, pixels: [], channels: 3)
        let own = SourcePicture.size(of: picture, nil, multiple: 8, limits: (2048, 2048))
        #expect(own == (ownWidth, ownHeight))
        var outpainting = Outpainting()
        outpainting.right = width
        let continued = SourcePicture.size(of: picture, outpainting, multiple: 8, limits: (1 << 20, 1 << 20))
        #expect(continued == (2 * width / 8 * 8, max(height / 8, 1) * 8))
    }

    @Test func aRequestCarriesAPicture() throws {
        let image = try png(70, 45)
        let request = try decode("\"image\": \"data:image/png;base64,\(image)\"")
        #expect(request.width == 64 && request.height == 40)
        #expect(request.source?.pixels.count == 64 * 40 * 3 && request.source?.mask == nil)
        #expect(request.source?.strength == 0.75)
        let masked = try decode(
            "\"image\": \"\(image)\", \"mask\": \"\(image)\", \"strength\": 1, \"width\": 128, \"height\": 72"
        )
        #expect(masked.width == 128 && masked.source?.pixels.count == 128 * 72 * 3)
        #expect(masked.source?.mask?.count == 128 * 72 && masked.source?.strength == 1)
        #expect(try decode("\"image\": null").source == nil)
    }

    @Test(arguments: [
        ("\"image\": 1", "image", "string"), ("\"image\": \"%\"", "image", "base64"),
        ("\"image\": \"\"", "image", "base64"),
        ("\"image\": \"AAAA\"", "image", "neither a PNG"),
        ("\"image\": \"IMAGE\", \"strength\": 0", "strength", "greater"),
        ("\"image\": \"IMAGE\", \"strength\": 1.5", "strength", "less"), ("\"mask\": \"IMAGE\"", "mask", "without"),
        ("\"image\": \"/9j/4AAQ\"", "image", "the JPEG file cannot be read"),
        ("\"image\": \"IMAGE\", \"mask\": \"/9j/4AAQ\"", "mask", "the JPEG file cannot be read"),
        ("\"strength\": 0.5", "strength", "without"), ("\"image\": \"IMAGE\", \"mask\": \"OTHER\"", "mask", "16x8"),
        ("\"image\": \"IMAGE\", \"mask\": \"AAAA\"", "mask", "neither a PNG"),
    ])
    func whatIsWrongWithAPictureIsNamed(fields: String, name: String, words: String) throws {
        let text = fields.replacing("IMAGE", with: try png(16, 16)).replacing("OTHER", with: try png(16, 8))
        let error = try #require(throws: RequestProblems.self) { try decode(text) }
        let problem = try #require(error.problems.first)
        #expect(error.problems.count == 1 && problem.location == [.name("body"), .name(name)])
        #expect(problem.message.contains(words), "\(problem.message)")
    }
}

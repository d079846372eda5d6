// Outpainting: the canvas and its mask by exact small cases, the fields of a request, and on a device that what stays is what inpainting keeps.

import Foundation
import JSON
import TensorOps
import TestSupport
import Testing

@testable import Serving
@testable import StableDiffusion

@Suite struct OutpaintingTests {
    private func grey(_ rows: String) -> DecodedPicture {
        let lines = rows.split(separator: "/")
        return DecodedPicture(
            width: lines[0].count,
            height: lines.count,
            pixels: Array(lines.joined().utf8),
            channels: 1
        )
    }

    private func extended(
        _ rows: String,
        mask: DecodedPicture? = nil,
        _ change: (inout Outpainting) -> Void
    ) throws -> (picture: String, mask: String) {
        var outpainting = Outpainting()
        outpainting.overlap = 0
        change(&outpainting)
        let result = try outpainting.extended(grey(rows), mask: mask)
        func lines(_ picture: DecodedPicture, _ text: (UInt8) -> Character) -> String {
            stride(from: 0, to: picture.pixels.count, by: picture.width).map { start in
                String(picture.pixels[start..<start + picture.width].map(text))
            }.joined(separator: "/")
        }
        return (
            lines(result.picture) { Character(Unicode.Scalar($0)) }, lines(result.mask) { $0 >= 128 ? "#" : "." }
        )
    }

    @Test func theBorderGoesOnAndIsDrawnAnew() throws {
        let right = try extended("abc/def") { $0.right = 2 }
        #expect(right.picture == "abccc/defff")
        #expect(right.mask == "...##/...##")
        let corners = try extended("abc/def") { ($0.left, $0.top, $0.bottom) = (1, 1, 2) }
        #expect(corners.picture == "aabc/aabc/ddef/ddef/ddef")
        #expect(corners.mask == "####/#.../#.../####/####")
    }

    @Test func theOverlapIsOnlyAlongContinuedSides() throws {
        let result = try extended("abcd/efgh/ijkl") { ($0.left, $0.bottom, $0.overlap) = (1, 1, 1) }
        #expect(result.picture == "aabcd/eefgh/iijkl/iijkl")
        #expect(result.mask == "##.../##.../#####/#####")
    }

    @Test func aMaskIsTakenAlong() throws {
        let mask = DecodedPicture(width: 3, height: 2, pixels: [0, 255, 0, 0, 0, 200], channels: 1)
        let result = try extended("abc/def", mask: mask) { $0.left = 1 }
        #expect(result.mask == "#.#./#..#")
    }

    @Test func everyChannelGoesOn() throws {
        var outpainting = Outpainting()
        (outpainting.left, outpainting.overlap) = (1, 0)
        let picture = DecodedPicture(width: 2, height: 1, pixels: [1, 2, 3, 4, 5, 6], channels: 3)
        #expect(try outpainting.extended(picture, mask: nil).picture.pixels == [1, 2, 3, 1, 2, 3, 4, 5, 6])
    }

    @Test func whatIsTooMuchIsRefused() throws {
        for (change, words) in [
            ({ _ in }, "at least one of them"), ({ $0.left = -1 }, "0 to 16384"),
            ({ ($0.left, $0.overlap) = (1, 3) }, "leaves nothing of an image of 3x2"),
            ({ ($0.top, $0.bottom, $0.overlap) = (1, 1, 1) }, "leaves nothing of an image of 3x2"),
            ({ $0.right = 16384 }, "allowed are"), ({ ($0.right, $0.bottom) = (8000, 8000) }, "allowed are"),
        ] as [((inout Outpainting) -> Void, String)] {
            let error = try #require(throws: PictureError.self) { try extended("abc/def", change) }
            #expect(error.description.contains(words), "\(error)")
        }
    }

    // MARK: Requests

    private static let image = Result {
        let pixels = (0..<64 * 48 * 3).map { UInt8($0 % 251) }
        return Data(try PNGEncoder.encode(pixels: pixels, width: 64, height: 48)).base64EncodedString()
    }

    private func decode(_ fields: String) throws -> GenerationRequest {
        let body = "{\"prompt\": \"a\", \(fields.replacing("IMAGE", with: try Self.image.get()))}"
        return try GenerateSchema(configuration: Configuration(), nativeSize: 64).decode(Array(body.utf8))
    }

    @Test func aRequestContinuesAPicture() throws {
        let request = try decode("\"image\": \"IMAGE\", \"outpaint\": {\"left\": 32, \"top\": null, \"bottom\": 8.0}")
        #expect(request.width == 96 && request.height == 56)
        let source = try #require(request.source)
        #expect(source.strength == 1 && source.pixels.count == 96 * 56 * 3)
        let mask = try #require(source.mask)
        // The middle row, and the middle column of the picture: margin, overlap of 16, the rest.
        #expect((0..<96).filter { mask[20 * 96 + $0] < 128 } == Array(48..<96))
        #expect((0..<56).filter { mask[$0 * 96 + 80] < 128 } == Array(0..<32))
        // Combined with a mask, at a strength of its own, in another size.
        let other = try decode(
            "\"image\": \"IMAGE\", \"mask\": \"IMAGE\", \"outpaint\": {\"right\": 64}, \"strength\": 0.5, \"width\": 64"
        )
        #expect(other.width == 64 && other.height == 48 && other.source?.strength == 0.5)
        #expect(try decode("\"image\": \"IMAGE\", \"outpaint\": null").source?.mask == nil)
    }

    @Test(arguments: [
        ("\"outpaint\": {\"left\": 8}", ["outpaint"], "without an image"),
        ("\"image\": \"IMAGE\", \"outpaint\": 8", ["outpaint"], "dictionary"),
        ("\"image\": \"IMAGE\", \"outpaint\": {}", ["outpaint"], "at least one of them"),
        ("\"image\": \"IMAGE\", \"outpaint\": {\"left\": -8}", ["outpaint", "left"], "greater than or equal to 0"),
        ("\"image\": \"IMAGE\", \"outpaint\": {\"top\": 20000}", ["outpaint", "top"], "less than or equal to 16384"),
        ("\"image\": \"IMAGE\", \"outpaint\": {\"top\": 8, \"overlap\": 48}", ["outpaint"], "leaves nothing"),
        ("\"image\": \"IMAGE\", \"outpaint\": {\"right\": 16384}", ["outpaint"], "allowed are"),
    ])
    func whatIsWrongIsNamed(fields: String, names: [String], words: String) throws {
        let error = try #require(throws: RequestProblems.self) { try decode(fields) }
        let problem = try #require(error.problems.first)
        #expect(error.problems.count == 1 && problem.location == (["body"] + names).map { .name($0) })
        #expect(problem.message.contains(words), "\(problem.message)")
    }
}

/// On a device.
@Suite(.requiresDevice) @DeviceActor
struct OutpaintedPictureTests {
    @Test func whatStaysIsWhatInpaintingKeeps() throws {
        let models = try Fixture.json("pictures.json")["models"]?.arrayValue
        let tensors = try #require(models?.first { $0["model"]?.stringValue == "sd1" }?["tensors"]?["vae"])
        let checkpoint = try RandomCheckpoint("sd1", vae: tensors)
        var options = PipelineOptions(modelPath: checkpoint.path, precision: .float32)
        options.device.gemm = .builtin
        options.device.platform = ProcessInfo.processInfo.environment["DIFFUSED_TEST_PLATFORM"]
        options.cacheDirectory = testCacheDirectory
        let pipeline = try StableDiffusionPipeline(options, logger: testLogger)

        var outpainting = Outpainting()
        (outpainting.right, outpainting.overlap) = (32, 8)
        let picture = DecodedPicture(
            width: 64,
            height: 64,
            pixels: (0..<64 * 64 * 3).map { UInt8($0 % 251) },
            channels: 3
        )
        let (width, height) = (96, 64)
        let source = try SourcePicture(
            picture,
            mask: nil,
            outpainting: outpainting,
            strength: nil,
            width: width,
            height: height
        )
        let latents = try ["a red circle", "a yellow star"].map { prompt in
            let request = GenerationRequest(
                prompt: prompt,
                width: width,
                height: height,
                steps: 2,
                guidanceScale: 5,
                seed: Seed(UInt64(3)),
                source: source
            )
            let generation = try #require(try pipeline.prepare(request) as? PictureGeneration)
            while generation.completedSteps < generation.totalSteps { try generation.step() }
            return try generation.latents.floats()
        }
        // What stays knows nothing of the prompt; what is drawn does. A latent is 8 pixels wide and has 4 channels.
        let scale = pipeline.configuration.vae.scaleFactor
        let (row, channels) = (width / scale, 4)
        for index in latents[0].indices {
            let x = index / channels % row * scale
            let isEqual = latents[0][index] == latents[1][index]
            #expect(isEqual == (x < 64 - 8), "x \(x)")
        }
    }
}

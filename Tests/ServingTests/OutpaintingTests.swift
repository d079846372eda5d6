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

    private func outpainting(_ change: (inout Outpainting) -> Void) -> Outpainting {
        var outpainting = Outpainting()
        outpainting.overlap = 0
        change(&outpainting)
        return outpainting
    }

    private func lines(_ pixels: [UInt8], width: Int, _ text: (UInt8) -> Character) -> String {
        stride(from: 0, to: pixels.count, by: width).map { String(pixels[$0..<$0 + width].map(text)) }
            .joined(separator: "/")
    }

    private func extended(_ rows: String, _ change: (inout Outpainting) -> Void) throws -> String {
        let canvas = try outpainting(change).extended(grey(rows))
        return lines(canvas.pixels, width: canvas.width) { Character(Unicode.Scalar($0)) }
    }

    /// What is drawn anew around a picture of 6x4 pixels.
    private func drawn(
        _ size: (Int, Int),
        mask: String? = nil,
        multiple: Int = 1,
        _ change: (inout Outpainting) -> Void
    ) throws -> String {
        let mask = try outpainting(change).drawn(
            around: grey("abcdef/abcdef/abcdef/abcdef"),
            mask: mask?.filter { $0 != "/" }.map { $0 == "#" ? 255 : 0 },
            width: size.0,
            height: size.1,
            multiple: multiple
        )
        return lines(mask, width: size.0) { $0 >= 128 ? "#" : "." }
    }

    @Test func theBorderGoesOn() throws {
        #expect(try extended("abc/def") { $0.right = 2 } == "abccc/defff")
        #expect(try extended("abc/def") { ($0.left, $0.top, $0.bottom) = (1, 1, 2) } == "aabc/aabc/ddef/ddef/ddef")
    }

    @Test func whatIsBeyondIsDrawnAnew() throws {
        #expect(try drawn((8, 4)) { $0.right = 2 } == "......##/......##/......##/......##")
        #expect(
            try drawn((7, 6)) { ($0.left, $0.top, $0.bottom) = (1, 1, 1) }
                == "#######/#....../#....../#....../#....../#######"
        )
    }

    /// It is in pixels of the picture that is made, whatever that was reduced to, and only along continued sides.
    @Test func theOverlapIsOfThePictureThatIsMade() throws {
        #expect(
            try drawn((8, 5)) { ($0.left, $0.bottom, $0.overlap) = (2, 1, 1) }
                == "###...../###...../###...../########/########"
        )
        #expect(try drawn((4, 2)) { ($0.left, $0.overlap) = (2, 1) } == "##../##..")
    }

    /// A latent that is partly beyond the picture is drawn as a whole.
    @Test func latentsAreDrawnWhole() throws {
        #expect(
            try drawn((12, 4), multiple: 4) { ($0.left, $0.right) = (3, 3) }
                == Array(repeating: "####....####", count: 4).joined(separator: "/")
        )
        #expect(
            try drawn((8, 8), multiple: 2) { ($0.right, $0.bottom) = (2, 4) }
                == (Array(repeating: "......##", count: 4) + Array(repeating: "########", count: 4)).joined(
                    separator: "/"
                )
        )
        #expect(
            try drawn((12, 4), multiple: 2) { ($0.left, $0.right) = (3, 3) }
                == Array(repeating: "####....####", count: 4).joined(separator: "/")
        )
    }

    @Test func aMaskIsTakenAlong() throws {
        let mask = ".#.....#/..#...../......../........"
        #expect(try drawn((8, 4), mask: mask) { $0.left = 2 } == "##.....#/###...../##....../##......")
    }

    @Test func everyChannelGoesOn() throws {
        let picture = DecodedPicture(width: 2, height: 1, pixels: [1, 2, 3, 4, 5, 6], channels: 3)
        #expect(try outpainting { $0.left = 1 }.extended(picture).pixels == [1, 2, 3, 1, 2, 3, 4, 5, 6])
    }

    @Test func whatIsTooMuchIsRefused() throws {
        for (change, words) in [
            ({ _ in }, "at least one of them"), ({ $0.left = -1 }, "0 to 16384"),
            ({ $0.right = 16384 }, "allowed are"), ({ ($0.right, $0.bottom) = (8000, 8000) }, "allowed are"),
        ] as [((inout Outpainting) -> Void, String)] {
            let error = try #require(throws: PictureError.self) { try extended("abc/def", change) }
            #expect(error.description.contains(words), "\(error)")
        }
        for change in [{ ($0.left, $0.overlap) = (2, 6) }, { ($0.top, $0.bottom, $0.overlap) = (2, 2, 2) }]
            as [(inout Outpainting) -> Void]
        {
            let error = try #require(throws: PictureError.self) { try drawn((8, 8), change) }
            #expect(error.description.contains("leaves nothing of an image of 6x4 in a picture of 8x8"), "\(error)")
        }
    }

    // MARK: Requests

    private static let image = Result {
        let pixels = (0..<64 * 48 * 3).map { UInt8($0 % 251) }
        return Data(try PNGEncoder.encode(pixels: pixels, width: 64, height: 48)).base64EncodedString()
    }

    private func decode(_ fields: String) throws -> GenerationRequest {
        let body = "{\"prompt\": \"a\", \(fields.replacing("IMAGE", with: try Self.image.get()))}"
        return try GenerateSchema(configuration: Configuration(), nativeSize: 64).decode(Array(body.utf8)).request
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

    @Test func everythingWrongIsToldAtOnce() throws {
        let error = try #require(throws: RequestProblems.self) {
            try decode("\"image\": \"IMAGE\", \"outpaint\": {\"left\": -8, \"top\": \"x\", \"right\": 8}")
        }
        #expect(
            error.problems.map(\.location)
                == ["left", "top"].map { [.name("body"), .name("outpaint"), .name($0)] }
        )
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
            height: height,
            multiple: pipeline.configuration.sizeMultiple
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

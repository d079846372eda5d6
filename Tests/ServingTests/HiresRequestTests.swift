// The field `hires` of a request, and what a picture says of its second pass.

import JSON
import StableDiffusion
import Testing

@testable import Serving

@Suite struct HiresRequestTests {
    private func decode(_ fields: String) throws -> GenerationRequest {
        var configuration = Configuration()
        (configuration.limits.width, configuration.limits.height, configuration.limits.steps) = (1024, 512, 100)
        return try GenerateSchema(configuration: configuration, nativeSize: 256)
            .decode(Array("{\"prompt\": \"a\", \(fields)}".utf8)).request
    }

    @Test func whatIsLeftOutHasItsDefault() throws {
        let request = try decode("\"hires\": {}")
        #expect(request.hires == HiresPass(scale: 2, strength: 0.6, steps: nil))
        #expect(request.width == 256 && request.finalSize(multiple: 8) == (512, 512))
        let given = try decode("\"hires\": {\"scale\": 1.5, \"strength\": 1, \"steps\": 30}")
        #expect(
            given.hires == HiresPass(scale: 1.5, strength: 1, steps: 30) && given.finalSize(multiple: 8) == (384, 384)
        )
        #expect(try decode("\"hires\": null").hires == nil)
    }

    @Test(arguments: [
        ("\"hires\": 2", ["hires"], "dictionary"),
        ("\"hires\": {\"scale\": 1}", ["hires", "scale"], "greater than 1"),
        ("\"hires\": {\"scale\": 4.5}", ["hires", "scale"], "less than or equal to 4"),
        ("\"hires\": {\"strength\": 0}", ["hires", "strength"], "greater than 0"),
        ("\"hires\": {\"steps\": 101}", ["hires", "steps"], "less than or equal to 100"),
        ("\"hires\": {\"scale\": 3}", ["hires"], "768x768 pixels; allowed are 1024x512"),
    ])
    func whatIsWrongIsNamed(fields: String, names: [String], words: String) throws {
        let error = try #require(throws: RequestProblems.self) { try decode(fields) }
        let problem = try #require(error.problems.first)
        #expect(error.problems.count == 1 && problem.location == (["body"] + names).map { .name($0) })
        #expect(problem.message.contains(words), "\(problem.message)")
    }

    @Test func everythingWrongIsToldAtOnce() throws {
        let error = try #require(throws: RequestProblems.self) {
            try decode("\"steps\": 0, \"hires\": {\"scale\": 1, \"strength\": 2, \"steps\": \"x\"}")
        }
        #expect(
            error.problems.map(\.location) == [
                [.name("body"), .name("steps")], [.name("body"), .name("hires"), .name("scale")],
                [.name("body"), .name("hires"), .name("strength")], [.name("body"), .name("hires"), .name("steps")],
            ]
        )
    }

    @Test func thePictureSaysHowItWasMade() throws {
        let model = ModelDescription(name: "m", nativeSize: 256, precision: .float32, deviceName: "d")
        let text = ParametersText.text(for: try decode("\"steps\": 20, \"hires\": {\"strength\": 0.35}"), model: model)
        #expect(
            text.contains("Denoising strength: 0.35, Hires upscale: 2, Hires steps: 7, Hires upscaler: Lanczos"),
            "\(text)"
        )
        #expect(text.contains("Size: 256x256"))
    }
}

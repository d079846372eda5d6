// What a request body may hold. The expected types and messages are those of pydantic 2.13 with the same constraints.

import JSON
import StableDiffusion
import Testing

@testable import Serving

private func decode(
    _ body: String,
    configure: (inout Configuration) -> Void = { _ in }
) throws(RequestProblems) -> GenerationRequest {
    var configuration = Configuration()
    configure(&configuration)
    return try GenerateSchema(configuration: configuration, nativeSize: 512).decode(Array(body.utf8)).request
}

private let samplerNames = """
    'ddim', 'pndm', 'euler', 'euler_a', 'heun', 'dpm2', 'dpm2_a', 'lms', 'dpmpp_2m', 'dpmpp_2m_sde', 'dpmpp_sde', \
    'dpmpp_2s_a', 'unipc', 'deis', 'lcm' or 'tcd'
    """

@Suite struct GenerateSchemaTests {
    @Test func defaultsComeFromConfigurationAndModel() throws {
        let request = try decode("{\"prompt\": \"a cat\"}") { $0.image.height = 768 }
        #expect(request.prompt == "a cat")
        #expect(request.negativePrompt.isEmpty)
        #expect(request.width == 512)
        #expect(request.height == 768)
        #expect(request.steps == 50)
        #expect(request.guidanceScale == 7.5)
        #expect(request.sampler == .ddim)
        #expect(request.seed.bits <= UInt64(UInt32.max))
        let changed = try decode("{\"prompt\": \"\"}") {
            $0.sampling.steps = 20
            $0.sampling.scale = 3
        }
        #expect(changed.steps == 20)
        #expect(changed.guidanceScale == 3)
        #expect(changed.prompt.isEmpty)
    }

    @Test func everyField() throws {
        let request = try decode(
            """
            {"prompt": "a", "negative_prompt": "b", "width": 136, "height": "72", "steps": 7.0, "scale": "2.5",
             "seed": -9223372036854775808, "sampler": "euler_a", "schedule": "karras", "spacing": "leading", "eta": "0.5",
             "rng": "numpy", "prompt_syntax": "a1111", "clip_skip": "2",
             "loras": [{"name": "ink", "weight": -0.5}, {"name": "b.safetensors", "weight": null}],
             "batch_size": "ignored"}
            """
        )
        let expected = GenerationRequest(
            prompt: "a",
            negativePrompt: "b",
            width: 136,
            height: 72,
            steps: 7,
            guidanceScale: 2.5,
            seed: Seed(Int64.min),
            noise: .numpy,
            sampler: .eulerAncestral,
            schedule: .karras,
            spacing: .leading,
            eta: 0.5,
            promptSyntax: .a1111,
            clipSkip: 2,
            loras: [LoRAReference(name: "ink", weight: -0.5), LoRAReference(name: "b.safetensors")]
        )
        #expect(request == expected)
    }

    @Test(
        arguments: [
            ("\"sampler\": \"DPM++ 2M Karras\"", Sampler.dpmpp2M, SigmaSchedule.karras),
            ("\"sampler\": \"k_euler_a\"", .eulerAncestral, nil),
            ("\"sampler\": \"dpmpp_2m_karras\", \"schedule\": \"exponential\"", .dpmpp2M, .exponential),
            ("\"sampler\": \"dpmpp_2m_karras\", \"schedule\": \"auto\"", .dpmpp2M, nil),
            ("\"sampler\": \"euler\", \"schedule\": \"Beta\"", .euler, .beta),
            ("\"sampler\": null, \"schedule\": null", .ddim, nil),
        ] as [(String, Sampler, SigmaSchedule?)]
    )
    func samplersByAnyName(fields: String, sampler: Sampler, schedule: SigmaSchedule?) throws {
        let request = try decode("{\"prompt\": \"a\", \(fields)}")
        #expect(request.sampler == sampler && request.schedule == schedule)
    }

    @Test(
        arguments: [
            ("{}", "list_type", []), ("[1]", "model_attributes_type", [.position(0)]),
            ("[{\"name\": \"a\"}, {}]", "missing", [.position(1), .name("name")]),
            ("[{\"name\": 1}]", "string_type", [.position(0), .name("name")]),
            ("[{\"name\": \"\"}]", "string_type", [.position(0), .name("name")]),
            ("[{\"name\": \"a\", \"weight\": true}]", "float_type", [.position(0), .name("weight")]),
            ("[{\"name\": \"a\", \"weight\": NaN}]", "finite_number", [.position(0), .name("weight")]),
            ("[{\"name\": \"a\", \"weight\": 100.5}]", "less_than_equal", [.position(0), .name("weight")]),
            ("[{\"name\": \"a\", \"weight\": -101}]", "greater_than_equal", [.position(0), .name("weight")]),
            ("[" + String(repeating: "{\"name\": \"a\"},", count: 16) + "{\"name\": \"a\"}]", "too_long", []),
        ] as [(String, String, [RequestProblem.Step])]
    )
    func lorasThatAreNone(value: String, type: String, path: [RequestProblem.Step]) throws {
        let error = try #require(throws: RequestProblems.self) {
            try decode("{\"prompt\": \"a\", \"loras\": \(value)}")
        }
        #expect(error.problems.map(\.type) == [type])
        #expect(error.problems.first?.location == [.name("body"), .name("loras")] + path)
    }

    /// What the configuration sets is for those samplers that have it.
    @Test func theConfiguredScheduleIsForSamplersThatHaveIt() throws {
        func decodeConfigured(_ fields: String) throws -> GenerationRequest {
            try decode("{\"prompt\": \"a\"\(fields)}") {
                $0.sampling.sampler = .dpmpp2M
                $0.sampling.schedule = .karras
                $0.sampling.spacing = .trailing
                $0.sampling.noise = .cuda
            }
        }
        let configured = try decodeConfigured("")
        #expect(configured.sampler == .dpmpp2M && configured.schedule == .karras && configured.spacing == .trailing)
        #expect(configured.noise == .cuda)
        #expect(try decodeConfigured(", \"sampler\": \"euler\"").schedule == .karras)
        let ddim = try decodeConfigured(", \"sampler\": \"ddim\"")
        #expect(ddim.schedule == nil && ddim.spacing == .trailing)
        #expect(try decodeConfigured(", \"sampler\": \"lcm\"").spacing == nil)
    }

    @Test(arguments: [
        ("\"sampler\": \"ddim\", \"schedule\": \"karras\"", "schedule"), ("\"sampler\": \"ddim_karras\"", "schedule"),
        ("\"sampler\": \"lcm\", \"spacing\": \"trailing\"", "spacing"), ("\"sampler\": \"euler\", \"eta\": 0.5", "eta"),
    ])
    func whatASamplerCannotDoIsSaidBeforeItWaits(fields: String, field: String) throws {
        let error = try #require(throws: RequestProblems.self) { try decode("{\"prompt\": \"a\", \(fields)}") }
        #expect(error.problems.map(\.type) == ["value_error"])
        #expect(error.problems[0].location == [.name("body"), .name(field)])
        #expect(error.problems[0].message.contains("possible with") || field != "schedule")
    }

    @Test func nullIsAbsent() throws {
        let request = try decode(
            """
            {"prompt": "a", "negative_prompt": null, "width": null, "height": null, "steps": null, "scale": null,
             "seed": null, "sampler": null, "schedule": null, "spacing": null, "eta": null, "rng": null, "loras": null}
            """
        )
        #expect(request.steps == 50)
        #expect(request.width == 512)
    }

    @Test(arguments: [
        ("0", Seed(UInt64(0))), ("-1", Seed(Int64(-1))), ("18446744073709551615", Seed(UInt64.max)),
        ("9007199254740993", Seed(UInt64(9_007_199_254_740_993))), ("-9223372036854775808", Seed(Int64.min)),
        ("\"18446744073709551615\"", Seed(UInt64.max)), ("1e3", Seed(UInt64(1000))), ("42.0", Seed(UInt64(42))),
    ])
    func seedsAreExact(literal: String, seed: Seed) throws {
        #expect(try decode("{\"prompt\": \"a\", \"seed\": \(literal)}").seed == seed)
    }

    /// `field: value` beside a good prompt -> type and message of the one problem.
    @Test(arguments: [
        ("\"scale\": NaN", "scale", "finite_number", "Input should be a finite number"),
        ("\"scale\": 1e999", "scale", "finite_number", "Input should be a finite number"),
        ("\"scale\": \"nan\"", "scale", "finite_number", "Input should be a finite number"),
        ("\"scale\": -Infinity", "scale", "finite_number", "Input should be a finite number"),
        (
            "\"scale\": \"x\"", "scale", "float_parsing",
            "Input should be a valid number, unable to parse string as a number"
        ),
        ("\"scale\": 10000.1", "scale", "less_than_equal", "Input should be less than or equal to 10000"),
        ("\"scale\": 1e308", "scale", "less_than_equal", "Input should be less than or equal to 10000"),
        ("\"scale\": [1]", "scale", "float_type", "Input should be a valid number"),
        ("\"scale\": true", "scale", "float_type", "Input should be a valid number"),
        ("\"steps\": 0", "steps", "greater_than_equal", "Input should be greater than or equal to 1"),
        ("\"steps\": -3", "steps", "greater_than_equal", "Input should be greater than or equal to 1"),
        ("\"steps\": 1001", "steps", "less_than_equal", "Input should be less than or equal to 1000"),
        ("\"steps\": 1e400", "steps", "less_than_equal", "Input should be less than or equal to 1000"),
        (
            "\"steps\": 1.5", "steps", "int_from_float",
            "Input should be a valid integer, got a number with a fractional part"
        ),
        (
            "\"steps\": \"many\"", "steps", "int_parsing",
            "Input should be a valid integer, unable to parse string as an integer"
        ),
        (
            "\"steps\": \"1e2\"", "steps", "int_parsing",
            "Input should be a valid integer, unable to parse string as an integer"
        ),
        ("\"steps\": {}", "steps", "int_type", "Input should be a valid integer"),
        ("\"steps\": true", "steps", "int_type", "Input should be a valid integer"),
        ("\"steps\": Infinity", "steps", "finite_number", "Input should be a finite number"),
        ("\"width\": 100", "width", "multiple_of", "Input should be a multiple of 8"),
        ("\"width\": 0", "width", "greater_than_equal", "Input should be greater than or equal to 8"),
        ("\"height\": 2056", "height", "less_than_equal", "Input should be less than or equal to 2048"),
        (
            "\"seed\": 18446744073709551616", "seed", "less_than_equal",
            "Input should be less than or equal to 18446744073709551615"
        ),
        (
            "\"seed\": -9223372036854775809", "seed", "greater_than_equal",
            "Input should be greater than or equal to -9223372036854775808"
        ),
        ("\"sampler\": \"foo\"", "sampler", "enum", "Input should be \(samplerNames)"),
        ("\"sampler\": 1", "sampler", "enum", "Input should be \(samplerNames)"),
        (
            "\"schedule\": \"polyexponential\"", "schedule", "enum",
            "Input should be 'auto', 'uniform', 'karras', 'exponential' or 'beta'"
        ),
        ("\"spacing\": \"even\"", "spacing", "enum", "Input should be 'leading', 'trailing' or 'linspace'"),
        ("\"rng\": \"mine\"", "rng", "enum", "Input should be 'torch', 'cuda', 'tensorflow' or 'numpy'"),
        ("\"eta\": 1.5", "eta", "less_than_equal", "Input should be less than or equal to 1"),
        ("\"eta\": -0.5", "eta", "greater_than_equal", "Input should be greater than or equal to 0"),
        (
            "\"eta\": \"a\"", "eta", "float_parsing",
            "Input should be a valid number, unable to parse string as a number"
        ),
        ("\"prompt_syntax\": \"b\"", "prompt_syntax", "enum", "Input should be 'plain' or 'a1111'"),
        ("\"scale\": -10001", "scale", "greater_than_equal", "Input should be greater than or equal to -10000"),
        ("\"clip_skip\": 0", "clip_skip", "greater_than_equal", "Input should be greater than or equal to 1"),
        ("\"negative_prompt\": 1", "negative_prompt", "string_type", "Input should be a valid string"),
    ])
    func problems(field: String, name: String, type: String, message: String) throws {
        let error = try #require(throws: RequestProblems.self) { try decode("{\"prompt\": \"a\", \(field)}") }
        #expect(error.problems.count == 1)
        let problem = try #require(error.problems.first)
        #expect(problem.location == [.name("body"), .name(name)])
        #expect(problem.type == type)
        #expect(problem.message == message)
        #expect(problem.input != nil)
    }

    @Test(arguments: [
        ("{}", "missing", "Field required"), ("{\"prompt\": 5}", "string_type", "Input should be a valid string"),
        ("{\"prompt\": null}", "string_type", "Input should be a valid string"),
        ("{\"prompt\": [\"a\"]}", "string_type", "Input should be a valid string"),
    ])
    func promptProblems(body: String, type: String, message: String) throws {
        let error = try #require(throws: RequestProblems.self) { try decode(body) }
        #expect(error.problems.map(\.type) == [type])
        #expect(error.problems.map(\.message) == [message])
        #expect(error.problems[0].location == [.name("body"), .name("prompt")])
    }

    @Test func tooLongPromptIsNotSentBack() throws {
        let error = try #require(throws: RequestProblems.self) {
            try decode("{\"prompt\": \"\(String(repeating: "é", count: 10_001))\"}")
        }
        #expect(
            error.json.serialized
                == """
                {"detail":[{"type":"string_too_long","loc":["body","prompt"],\
                "msg":"String should have at most 10000 characters","ctx":{"max_length":10000}}]}
                """
        )
    }

    @Test func everythingWrongIsReportedAtOnce() throws {
        let error = try #require(throws: RequestProblems.self) { try decode("{\"steps\": 0, \"seed\": 1.5}") }
        #expect(
            error.json.serialized
                == """
                {"detail":[\
                {"type":"missing","loc":["body","prompt"],"msg":"Field required","input":{"steps":0,"seed":1.5}},\
                {"type":"greater_than_equal","loc":["body","steps"],\
                "msg":"Input should be greater than or equal to 1","input":0,"ctx":{"ge":1}},\
                {"type":"int_from_float","loc":["body","seed"],\
                "msg":"Input should be a valid integer, got a number with a fractional part","input":1.5}]}
                """
        )
    }

    @Test(arguments: [
        ("", "{\"type\":\"missing\",\"loc\":[\"body\"],\"msg\":\"Field required\",\"input\":null}"),
        (
            "[1]",
            """
            {"type":"model_attributes_type","loc":["body"],\
            "msg":"Input should be a valid dictionary or object to extract fields from","input":[1]}
            """
        ),
        (
            "{\"a\": }",
            """
            {"type":"json_invalid","loc":["body",6],"msg":"JSON decode error","input":{},\
            "ctx":{"error":"Expecting value"}}
            """
        ),
    ])
    func bodiesThatAreNoObject(body: String, problem: String) throws {
        let error = try #require(throws: RequestProblems.self) { try decode(body) }
        #expect(error.json.serialized == "{\"detail\":[\(problem)]}")
    }

    @Test func limitsOfTheConfigurationHold() throws {
        let error = try #require(throws: RequestProblems.self) {
            try decode("{\"prompt\": \"a\", \"steps\": 11, \"width\": 520}") {
                $0.limits.steps = 10
                $0.limits.width = 512
            }
        }
        #expect(error.problems.map(\.message).count == 2)
    }
}

// What `POST /generate` takes: the fields with their titles, ranges and defaults, in one place that both checks a body
// and describes itself for `/openapi.json`, so that the two cannot disagree. Conversions follow pydantic's lax mode,
// which the first implementation's clients rely on, except that true and false are no numbers.

internal import Foundation
internal import JSON
internal import StableDiffusion

/// The request body of `POST /generate`.
struct GenerateSchema: Sendable {
    /// A whole-number field.
    struct IntegerField {
        let name: String
        let title: String
        let description: String
        let minimum: WholeNumber
        let maximum: WholeNumber
        var multiple: Int?
    }

    /// A model that a request may name.
    struct Model: Sendable {
        let name: String
        /// Picture side of a request that names none, when the configuration leaves it to the model; nil while that is unknown.
        var nativeSize: Int?
        /// What the sides of a picture are multiples of, where a request leaves them to its image.
        var sizeMultiple = 8
        /// Why it cannot be used, if it cannot.
        var problem: String?
    }

    let configuration: Configuration
    /// The one that draws when a request names none.
    private let usualModel: Model
    private let otherModels: [Model]

    /// A schema with the limits and defaults of a configuration.
    init(configuration: Configuration, usualModel: Model, otherModels: [Model] = []) {
        self.configuration = configuration
        self.usualModel = usualModel
        self.otherModels = otherModels
    }

    // MARK: Checking a body

    /// What a body asks for.
    struct Order: Sendable {
        /// The first picture.
        let request: GenerationRequest
        /// Pictures, each with the seed after the last one's.
        let count: Int
    }

    /// Checks a body and fills in the defaults.
    ///
    /// - Throws: `RequestProblems` with everything that is wrong.
    func decode(_ bytes: [UInt8]) throws(RequestProblems) -> Order {
        guard !bytes.isEmpty else {
            throw RequestProblems(
                problems: [RequestProblem(type: "missing", at: [.name("body")], "Field required", input: .null)]
            )
        }
        let body: JSONValue
        do {
            body = try JSONValue(parsing: bytes, accepting: [.nonFiniteNumbers, .repeatedNames])
        } catch {
            throw RequestProblems(
                problems: [
                    RequestProblem(
                        type: "json_invalid",
                        at: [.name("body"), .position(error.position)],
                        "JSON decode error",
                        input: [:],
                        context: ["error": .string(error.reason.pythonWords)]
                    )
                ]
            )
        }
        return try decode(body)
    }

    private func decode(_ body: JSONValue) throws(RequestProblems) -> Order {
        do {
            try Self.requireObject(body, at: [.name("body")])
        } catch {
            throw RequestProblems(problems: [error])
        }

        var fields = FieldReader(body: body)
        let text = { (name: String, value: JSONValue) throws(RequestProblem) in try self.text(name, value) }
        let prompt = fields.readRequired("prompt", placeholder: "", text)
        let model = fields.read("model", default: usualModel, model)
        let size = model.nativeSize ?? 0
        let sampling = configuration.sampling
        let count = fields.read("count", default: 1) { _, value throws(RequestProblem) in
            try integer(countField, value)
        }
        let name = fields.read("sampler", default: SamplerName(sampling.sampler), samplerName)
        let sampler = name.sampler
        var request = GenerationRequest(
            model: otherModels.isEmpty ? nil : model.name,
            prompt: prompt,
            negativePrompt: fields.read("negative_prompt", default: "", text),
            width: fields.read("width", default: configuration.image.width ?? size) { _, value throws(RequestProblem) in
                try integer(widthField, value)
            },
            height: fields.read("height", default: configuration.image.height ?? size) {
                _,
                value throws(RequestProblem) in
                try integer(heightField, value)
            },
            steps: fields.read("steps", default: configuration.sampling.steps) { _, value throws(RequestProblem) in
                try integer(stepsField, value)
            },
            guidanceScale: fields.read("scale", default: configuration.sampling.scale, guidanceScale),
            seed: fields.read("seed", default: Seed.random(), seed),
            noise: fields.read("rng", default: sampling.noise) { name, value throws(RequestProblem) in
                try choice(name, value, among: NoiseSource.allCases.map(\.rawValue), NoiseSource.init(rawValue:))
            },
            sampler: sampler,
            schedule: fields.read("schedule", default: name.schedule ?? sampling.schedule(for: sampler), schedule),
            spacing: fields.read("spacing", default: sampling.spacing(for: sampler)) {
                name,
                value throws(RequestProblem) in
                try choice(
                    name,
                    value,
                    among: TimestepSpacing.allCases.map(\.rawValue),
                    TimestepSpacing.init(rawValue:)
                )
            },
            eta: fields.read("eta", default: nil, eta),
            promptSyntax: fields.read("prompt_syntax", default: sampling.promptSyntax) {
                name,
                value throws(RequestProblem) in
                try choice(name, value, among: PromptSyntax.allCases.map(\.rawValue), PromptSyntax.init(rawValue:))
            },
            clipSkip: fields.read("clip_skip", default: sampling.clipSkip) { _, value throws(RequestProblem) in
                try integer(clipSkipField, value)
            },
            loras: fields.read("loras", default: [], loras),
            hires: fields.readObject("hires", hires)
        )
        if fields.problems.isEmpty {
            do {
                try sampler.check(schedule: request.schedule, spacing: request.spacing, eta: request.eta)
            } catch .invalid(let field, let reason) {
                fields.problems = [
                    RequestProblem(type: "value_error", field: field, "Value error, \(reason)", input: body[field])
                ]
            } catch {
                fields.problems = [RequestProblem(type: "value_error", field: "sampler", "Value error, \(error)")]
            }
        }
        let multiple = model.sizeMultiple
        if fields.problems.isEmpty { addSource(to: &request, of: body, multiple: multiple, &fields) }
        if fields.problems.isEmpty, let problem = hiresProblem(request, body, multiple: multiple) {
            fields.problems = [problem]
        }
        guard fields.problems.isEmpty else { throw RequestProblems(problems: fields.problems) }
        return Order(request: request, count: count)
    }

    /// Adds the picture that a picture is to be made from, if there is one.
    private func addSource(
        to request: inout GenerationRequest,
        of body: JSONValue,
        multiple: Int,
        _ fields: inout FieldReader
    ) {
        let strength = fields.read("strength", default: nil, strength)
        let outpainting = fields.readObject("outpaint", outpaint)
        let image = fields.read("image", default: nil) { name, value throws(RequestProblem) -> DecodedPicture? in
            let bytes = try file(name, value)
            do {
                return try DecodedPicture.rgb(bytes)
            } catch {
                throw RequestProblem(type: "value_error", field: name, "Value error, \(error)")
            }
        }
        let mask = fields.read("mask", default: nil) { name, value throws(RequestProblem) -> [UInt8]? in
            try file(name, value)
        }
        guard fields.problems.isEmpty else { return }
        guard let image else {
            for name in ["mask", "strength", "outpaint"] {
                guard let value = body[name], value != .null else { continue }
                fields.problems.append(
                    RequestProblem(type: "value_error", field: name, "Value error, without an image it says nothing")
                )
            }
            return
        }
        // What the request leaves open is the picture's own size.
        let own = SourcePicture.size(
            of: image,
            outpainting,
            multiple: multiple,
            limits: (configuration.limits.width, configuration.limits.height)
        )
        if (body["width"] ?? .null) == .null { request.width = own.width }
        if (body["height"] ?? .null) == .null { request.height = own.height }
        do {
            request.source = try SourcePicture(
                image,
                mask: mask,
                outpainting: outpainting,
                strength: strength,
                width: request.width,
                height: request.height,
                multiple: multiple
            )
        } catch {
            fields.problems.append(
                RequestProblem(type: "value_error", field: error.field, "Value error, \(error.reason)")
            )
        }
    }

    /// The bytes of a file in base64, with or without the prefix of a data URL.
    private func file(_ name: String, _ value: JSONValue) throws(RequestProblem) -> [UInt8] {
        guard case .string(let text) = value else {
            throw RequestProblem(type: "string_type", field: name, "Input should be a valid string", input: value)
        }
        let encoded =
            text.hasPrefix("data:") ? text.firstIndex(of: ",").map { text[text.index(after: $0)...] } : text[...]
        guard let encoded, !encoded.isEmpty,
            let data = Data(base64Encoded: String(encoded), options: .ignoreUnknownCharacters),
            !data.isEmpty
        else {
            throw RequestProblem(type: "value_error", field: name, "Value error, it is no file in base64")
        }
        return Array(data)
    }

    private func model(_ name: String, _ value: JSONValue) throws(RequestProblem) -> Model {
        let models = [usualModel] + otherModels
        let model = try choice(name, value, among: models.map(\.name)) { word in models.first { $0.name == word } }
        if let problem = model.problem {
            throw RequestProblem(
                type: "value_error",
                field: name,
                "Value error, it cannot be used: \(problem)",
                input: value
            )
        }
        return model
    }

    private func strength(_ name: String, _ value: JSONValue) throws(RequestProblem) -> Double? {
        try number(name, value, above: 0, atMost: 1)
    }

    /// A number above one limit and up to another.
    func number(_ name: String, _ value: JSONValue, above lowest: Int, atMost limit: Int) throws(RequestProblem)
        -> Double
    {
        let number = try number(name, value, atMost: limit)
        guard number > Double(lowest) else {
            throw RequestProblem(
                type: "greater_than",
                field: name,
                "Input should be greater than \(lowest)",
                input: value,
                context: ["gt": JSONValue(lowest)]
            )
        }
        return number
    }

    /// Refuses what is no object.
    static func requireObject(_ value: JSONValue, at location: [RequestProblem.Step]) throws(RequestProblem) {
        guard case .object = value else {
            throw RequestProblem(
                type: "model_attributes_type",
                at: location,
                "Input should be a valid dictionary or object to extract fields from",
                input: value
            )
        }
    }

    /// Reads the fields of a body and keeps what is wrong with them, so that a client hears of everything at once.
    struct FieldReader {
        let body: JSONValue
        var problems: [RequestProblem] = []

        /// An optional field: absent and null are the same, and give the default.
        mutating func read<Value>(
            _ name: String,
            default value: Value,
            _ convert: (String, JSONValue) throws(RequestProblem) -> Value
        ) -> Value {
            guard let input = body[name], input != .null else { return value }
            return converted(name, input, placeholder: value, convert)
        }

        /// An optional field that is an object with fields of its own; nil where it is absent or null, or no object.
        mutating func readObject<Value>(_ name: String, _ convert: (inout FieldReader) -> Value) -> Value? {
            guard let input = body[name], input != .null else { return nil }
            do {
                try GenerateSchema.requireObject(input, at: [.name("body"), .name(name)])
            } catch {
                problems.append(error)
                return nil
            }
            var fields = FieldReader(body: input)
            let value = convert(&fields)
            problems += fields.problems.map { $0.within(name) }
            return value
        }

        /// A field that must be there.
        mutating func readRequired<Value>(
            _ name: String,
            placeholder: Value,
            _ convert: (String, JSONValue) throws(RequestProblem) -> Value
        ) -> Value {
            guard let input = body[name] else {
                problems.append(RequestProblem(type: "missing", field: name, "Field required", input: body))
                return placeholder
            }
            return converted(name, input, placeholder: placeholder, convert)
        }

        private mutating func converted<Value>(
            _ name: String,
            _ input: JSONValue,
            placeholder: Value,
            _ convert: (String, JSONValue) throws(RequestProblem) -> Value
        ) -> Value {
            do {
                return try convert(name, input)
            } catch {
                problems.append(error)
                return placeholder
            }
        }
    }

    private func text(_ name: String, _ value: JSONValue) throws(RequestProblem) -> String {
        guard case .string(let text) = value else {
            throw RequestProblem(type: "string_type", field: name, "Input should be a valid string", input: value)
        }
        let limit = configuration.limits.promptCharacters
        guard text.unicodeScalars.count <= limit else {
            throw RequestProblem(
                type: "string_too_long",
                field: name,
                "String should have at most \(limit) characters",
                input: value,
                context: ["max_length": JSONValue(limit)]
            )
        }
        return text
    }

    func number(_ name: String, _ value: JSONValue) throws(RequestProblem) -> Double {
        let literal: String
        switch value {
        case .number(let text), .string(let text): literal = text
        default: throw RequestProblem(type: "float_type", field: name, "Input should be a valid number", input: value)
        }
        do {
            return try finiteDouble(literal: literal)
        } catch .notFinite {
            throw RequestProblem(
                type: "finite_number",
                field: name,
                "Input should be a finite number",
                input: value
            )
        } catch {
            throw RequestProblem(
                type: "float_parsing",
                field: name,
                "Input should be a valid number, unable to parse string as a number",
                input: value
            )
        }
    }

    private func guidanceScale(_ name: String, _ value: JSONValue) throws(RequestProblem) -> Double {
        let limit = Int(GenerationRequest.maximumGuidanceScale)
        return try number(name, value, in: -limit...limit)
    }

    /// A number within a range.
    func number(_ name: String, _ value: JSONValue, in range: ClosedRange<Int>) throws(RequestProblem) -> Double {
        let number = try number(name, value, atMost: range.upperBound)
        guard number >= Double(range.lowerBound) else {
            throw RequestProblem(
                type: "greater_than_equal",
                field: name,
                "Input should be greater than or equal to \(range.lowerBound)",
                input: value,
                context: ["ge": JSONValue(range.lowerBound)]
            )
        }
        return number
    }

    private func number(_ name: String, _ value: JSONValue, atMost limit: Int) throws(RequestProblem) -> Double {
        let number = try number(name, value)
        guard number <= Double(limit) else {
            throw RequestProblem(
                type: "less_than_equal",
                field: name,
                "Input should be less than or equal to \(limit)",
                input: value,
                context: ["le": JSONValue(limit)]
            )
        }
        return number
    }

    private func eta(_ name: String, _ value: JSONValue) throws(RequestProblem) -> Double? {
        try number(name, value, in: 0...1)
    }

    private func wholeNumber(_ field: IntegerField, _ value: JSONValue) throws(RequestProblem) -> WholeNumber {
        func problem(_ type: String, _ message: String, context: JSONValue? = nil) -> RequestProblem {
            RequestProblem(type: type, field: field.name, message, input: value, context: context)
        }
        let number: WholeNumber
        switch (value, Result { () throws(NumberLiteralError) in try Self.wholeNumber(value) }) {
        case (_, .success(let parsed?)): number = parsed
        case (_, .success(nil)):
            throw problem("int_type", "Input should be a valid integer")
        case (_, .failure(.notFinite)):
            throw problem("finite_number", "Input should be a finite number")
        case (.number, .failure(.fractional)):
            throw problem("int_from_float", "Input should be a valid integer, got a number with a fractional part")
        case (_, .failure):
            throw problem("int_parsing", "Input should be a valid integer, unable to parse string as an integer")
        }
        guard number >= field.minimum else {
            let limit = field.minimum.description
            throw problem(
                "greater_than_equal",
                "Input should be greater than or equal to \(limit)",
                context: ["ge": .number(limit)]
            )
        }
        guard number <= field.maximum else {
            let limit = field.maximum.description
            throw problem(
                "less_than_equal",
                "Input should be less than or equal to \(limit)",
                context: ["le": .number(limit)]
            )
        }
        if let multiple = field.multiple, !number.isMultiple(of: multiple) {
            throw problem(
                "multiple_of",
                "Input should be a multiple of \(multiple)",
                context: ["multiple_of": JSONValue(multiple)]
            )
        }
        return number
    }

    /// The whole number a value stands for; nil when it is of a type that stands for none.
    private static func wholeNumber(_ value: JSONValue) throws(NumberLiteralError) -> WholeNumber? {
        switch value {
        case .number(let literal): try WholeNumber(literal: literal)
        case .string(let text): try WholeNumber(text: text)
        default: nil
        }
    }

    func integer(_ field: IntegerField, _ value: JSONValue) throws(RequestProblem) -> Int {
        // The ranges of these fields are ranges of Int.
        try wholeNumber(field, value).int ?? 0
    }

    private func seed(_ name: String, _ value: JSONValue) throws(RequestProblem) -> Seed {
        let number = try wholeNumber(seedField, value)
        return number.isNegative ? Seed(Int64(number.int ?? 0)) : Seed(number.uint64 ?? 0)
    }

    private func samplerName(_ name: String, _ value: JSONValue) throws(RequestProblem) -> SamplerName {
        try choice(name, value, among: Sampler.allCases.map(\.rawValue)) { SamplerName($0) }
    }

    /// A schedule; nil for the checkpoint's.
    private func schedule(_ name: String, _ value: JSONValue) throws(RequestProblem) -> SigmaSchedule? {
        if case .string(let word) = value, ["auto", "automatic"].contains(word.lowercased()) { return nil }
        let words = ["auto"] + SigmaSchedule.allCases.map(\.rawValue)
        return try choice(name, value, among: words, SigmaSchedule.init(name:))
    }

    private func choice<Choice>(
        _ name: String,
        _ value: JSONValue,
        among words: [String],
        _ read: (String) -> Choice?
    ) throws(RequestProblem) -> Choice {
        if case .string(let word) = value, let choice = read(word) { return choice }
        let names = words.map { "'\($0)'" }
        let expected =
            names.count > 1 ? names.dropLast().joined(separator: ", ") + " or " + (names.last ?? "") : names.joined()
        throw RequestProblem(
            type: "enum",
            field: name,
            "Input should be \(expected)",
            input: value,
            context: ["expected": .string(expected)]
        )
    }

    // MARK: Fields

    var stepsField: IntegerField {
        IntegerField(
            name: "steps",
            title: "Steps",
            description: "Number of dim sampling steps",
            minimum: WholeNumber(1),
            maximum: WholeNumber(configuration.limits.steps)
        )
    }

    private var countField: IntegerField {
        IntegerField(
            name: "count",
            title: "Count",
            description:
                "Number of images, each with the seed after the last one's and equal to the single image with it",
            minimum: WholeNumber(1),
            maximum: WholeNumber(configuration.limits.count)
        )
    }

    private var clipSkipField: IntegerField {
        IntegerField(
            name: "clip_skip",
            title: "Clip skip",
            description:
                "Layer of the text encoder, counted from the end, that conditions the image; 1 is the one the model "
                + "was trained with",
            minimum: WholeNumber(1),
            maximum: WholeNumber(GenerationRequest.maximumClipSkip)
        )
    }

    private var seedField: IntegerField {
        IntegerField(
            name: "seed",
            title: "Seed",
            description: "Optionally specify a seed for reproduceable results",
            minimum: WholeNumber(Int64.min),
            maximum: WholeNumber(UInt64.max)
        )
    }

    private var widthField: IntegerField {
        IntegerField(
            name: "width",
            title: "Width",
            description: "Width of the image in pixels, a multiple of 8",
            minimum: WholeNumber(8),
            maximum: WholeNumber(configuration.limits.width),
            multiple: 8
        )
    }

    private var heightField: IntegerField {
        IntegerField(
            name: "height",
            title: "Height",
            description: "Height of the image in pixels, a multiple of 8",
            minimum: WholeNumber(8),
            maximum: WholeNumber(configuration.limits.height),
            multiple: 8
        )
    }

    // MARK: Describing itself

    /// The schema `GenerationRequest` of the OpenAPI document.
    var openAPI: JSONValue {
        let length = JSONValue(configuration.limits.promptCharacters)
        let size = { (side: Int?) in (side ?? usualModel.nativeSize).map { JSONValue($0) } }
        return [
            "title": "GenerationRequest",
            "type": "object",
            "required": ["prompt"],
            "properties": [
                "prompt": [
                    "title": "Input prompt",
                    "type": "string",
                    "description": "Input prompt to be rendered",
                    "maxLength": length,
                    "example": "a red circle on a blue background",
                ],
                "model": describe(
                    "Model",
                    "What draws it; loaded first if it is not. GET /models tells more of each",
                    ([usualModel] + otherModels).map(\.name),
                    default: usualModel.name
                ),
                "scale": [
                    "title": "Scale",
                    "type": "number",
                    "nullable": true,
                    "description":
                        "Unconditional guidance scale: eps = eps(x, empty) + scale * (eps(x, cond) - eps(x, empty))",
                    "minimum": JSONValue(-Int(GenerationRequest.maximumGuidanceScale)),
                    "maximum": JSONValue(Int(GenerationRequest.maximumGuidanceScale)),
                    "default": JSONValue(configuration.sampling.scale),
                ],
                "steps": describe(stepsField, default: JSONValue(configuration.sampling.steps)),
                "seed": describe(seedField, default: nil),
                "count": describe(countField, default: 1),
                "negative_prompt": [
                    "title": "Negative prompt",
                    "type": "string",
                    "nullable": true,
                    "description": "What the image should not show",
                    "maxLength": length,
                    "default": "",
                ],
                "width": describe(widthField, default: size(configuration.image.width)),
                "height": describe(heightField, default: size(configuration.image.height)),
                "sampler": describe(
                    "Sampler",
                    "Sampling algorithm; the names of other programs, such as 'DPM++ 2M Karras', are understood as well",
                    Sampler.allCases.map(\.rawValue),
                    default: configuration.sampling.sampler.rawValue
                ),
                "schedule": describe(
                    "Schedule",
                    "Which noise levels the steps visit; auto is what the checkpoint says",
                    ["auto"] + SigmaSchedule.allCases.map(\.rawValue),
                    default: configuration.sampling.schedule?.rawValue ?? "auto"
                ),
                "spacing": describe(
                    "Spacing",
                    "How timesteps are spaced; without it as the checkpoint says",
                    TimestepSpacing.allCases.map(\.rawValue),
                    default: configuration.sampling.spacing?.rawValue
                ),
                "eta": [
                    "title": "Eta",
                    "type": "number",
                    "nullable": true,
                    "description":
                        "Share of the noise taken away at a step that fresh noise replaces, for samplers that add noise",
                    "minimum": 0,
                    "maximum": 1,
                ],
                "prompt_syntax": describe(
                    "Prompt syntax",
                    "How the prompts are read: plain, cut where the text encoder ends; or a1111, with (weights:1.2), [less], "
                        + "BREAK and 32 times the length",
                    PromptSyntax.allCases.map(\.rawValue),
                    default: configuration.sampling.promptSyntax.rawValue
                ),
                "image": [
                    "title": "Image",
                    "type": "string",
                    "format": "byte",
                    "nullable": true,
                    "description":
                        "PNG or JPEG file in base64 that the image is made from; its size is the default of width and height",
                ],
                "mask": [
                    "title": "Mask",
                    "type": "string",
                    "format": "byte",
                    "nullable": true,
                    "description": "PNG or JPEG file in base64, of the image's size: white is drawn anew, black stays",
                ],
                "strength": [
                    "title": "Strength",
                    "type": "number",
                    "nullable": true,
                    "description":
                        "How far from the image the drawing begins; 1 is noise, and the default with outpaint",
                    "exclusiveMinimum": true,
                    "minimum": 0,
                    "maximum": 1,
                    "default": JSONValue(SourcePicture.usualStrength),
                ],
                "outpaint": outpaintDescription,
                "hires": hiresDescription,
                "clip_skip": describe(clipSkipField, default: JSONValue(configuration.sampling.clipSkip)),
                "rng": describe(
                    "Random numbers",
                    "Whose random numbers the seed means",
                    NoiseSource.allCases.map(\.rawValue),
                    default: configuration.sampling.noise.rawValue
                ),
                "loras": lorasDescription,
            ],
        ]
    }

    private func describe(
        _ title: String,
        _ description: String,
        _ words: [String],
        default value: String?
    ) -> JSONValue {
        var members: JSONObject = [
            "title": .string(title),
            "type": "string",
            "nullable": true,
            "description": .string(description),
            "enum": .array(words.map { .string($0) } + [.null]),
        ]
        members["default"] = value.map { .string($0) }
        return .object(members)
    }

    func describe(_ field: IntegerField, default value: JSONValue?) -> JSONValue {
        var members: JSONObject = [
            "title": .string(field.title),
            "type": "integer",
            "nullable": true,
            "description": .string(field.description),
            "minimum": .number(field.minimum.description),
            "maximum": .number(field.maximum.description),
        ]
        members["multipleOf"] = field.multiple.map { JSONValue($0) }
        members["default"] = value
        return .object(members)
    }
}

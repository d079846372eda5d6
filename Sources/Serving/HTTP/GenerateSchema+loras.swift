// The field `loras` of `POST /generate`: names and weights. Whether there is a LoRA of a name, and whether it fits the model, is said when its
// turn to be drawn comes.

internal import JSON
internal import StableDiffusion

extension GenerateSchema {
    private static let longestName = 200

    /// Reads `[{"name": "...", "weight": 0.8}, ...]`; the weight is 1 where it is left out.
    func loras(_ name: String, _ value: JSONValue) throws(RequestProblem) -> [LoRAReference] {
        guard case .array(let items) = value else {
            throw RequestProblem(type: "list_type", field: name, "Input should be a valid list", input: value)
        }
        let limit = LoRAReference.maximumCount
        guard items.count <= limit else {
            throw RequestProblem(
                type: "too_long",
                field: name,
                "List should have at most \(limit) items after validation, not \(items.count)",
                input: value,
                context: ["max_length": JSONValue(limit), "actual_length": JSONValue(items.count)]
            )
        }
        var references: [LoRAReference] = []
        for (index, item) in items.enumerated() {
            references.append(try lora(item, at: [.name("body"), .name(name), .position(index)]))
        }
        return references
    }

    private func lora(_ item: JSONValue, at location: [RequestProblem.Step]) throws(RequestProblem) -> LoRAReference {
        try Self.requireObject(item, at: location)
        guard let name = item["name"] else {
            throw RequestProblem(type: "missing", at: location + [.name("name")], "Field required", input: item)
        }
        guard case .string(let text) = name, 1...Self.longestName ~= text.unicodeScalars.count else {
            throw RequestProblem(
                type: "string_type",
                at: location + [.name("name")],
                "Input should be a valid string of 1 to \(Self.longestName) characters",
                input: name
            )
        }
        guard let weight = item["weight"], weight != .null else { return LoRAReference(name: text) }
        let limit = Int(LoRAReference.maximumWeight)
        do {
            return LoRAReference(name: text, weight: try number("weight", weight, in: -limit...limit))
        } catch {
            throw RequestProblem(
                type: error.type,
                at: location + [.name("weight")],
                error.message,
                input: weight,
                context: error.context
            )
        }
    }

    /// The field in the OpenAPI document.
    var lorasDescription: JSONValue {
        let limit = Int(LoRAReference.maximumWeight)
        return [
            "title": "LoRAs",
            "type": "array",
            "nullable": true,
            "description": "LoRAs of the configured directory to draw with, all at once",
            "maxItems": JSONValue(LoRAReference.maximumCount),
            "items": [
                "type": "object",
                "required": ["name"],
                "properties": [
                    "name": [
                        "type": "string",
                        "description": "Name of the file, with or without its ending",
                        "minLength": 1,
                        "maxLength": JSONValue(Self.longestName),
                    ],
                    "weight": [
                        "type": "number",
                        "nullable": true,
                        "description": "How much of it is added; 1 is what it was trained for",
                        "minimum": JSONValue(-limit),
                        "maximum": JSONValue(limit),
                        "default": 1,
                    ],
                ],
            ],
        ]
    }
}

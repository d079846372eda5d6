// How a request names LoRAs: beside the prompt, or within it as AUTOMATIC1111's web UI has it.

internal import Foundation

/// A LoRA of a request.
public struct LoRAReference: Sendable, Hashable {
    /// The most that one request may name.
    public static let maximumCount = 16
    /// The largest weight either way: far beyond any use.
    public static let maximumWeight = 100.0

    /// Name of a file in the directory of LoRAs, with or without its ending.
    public var name: String
    /// How much of it is added to the model; 1 is what it was trained for, a negative weight takes it away.
    public var weight: Double

    /// A reference from its parts.
    public init(name: String, weight: Double = 1) {
        self.name = name
        self.weight = weight
    }
}

extension GenerationRequest {
    /// The request with every `<lora:name:weight>` of its prompt taken out and put at the end of `loras`.
    ///
    /// Only in AUTOMATIC1111's syntax, and as there only of the prompt: elsewhere it is text like any other. The weight is 1 where it is left
    /// out (extensions-builtin/Lora/extra_networks_lora.py of its version 1.10).
    /// - Throws: `GenerationError.invalid` for a tag that cannot be read.
    func takingTags() throws(GenerationError) -> GenerationRequest {
        guard promptSyntax == .a1111 else { return self }
        let opening = "<lora:"
        var request = self
        var text = ""
        var rest = prompt[...]
        while let start = rest.range(of: opening), let end = rest[start.upperBound...].firstIndex(of: ">") {
            text += rest[..<start.lowerBound]
            request.loras.append(try Self.reference(rest[start.upperBound..<end]))
            rest = rest[rest.index(after: end)...]
        }
        request.prompt = text + rest
        return request
    }

    /// Reads what stands between `<lora:` and `>`.
    private static func reference(_ tag: Substring) throws(GenerationError) -> LoRAReference {
        func invalid(_ reason: String) -> GenerationError {
            .invalid(field: "prompt", reason: "<lora:\(tag.prefix(100))>: \(reason)")
        }
        let parts = tag.split(separator: ":", omittingEmptySubsequences: false)
        guard let name = parts.first, !name.isEmpty else { throw invalid("a name is missing") }
        guard parts.count > 1 else { return LoRAReference(name: String(name)) }
        guard parts.count == 2 else {
            throw invalid("found \(parts.count - 1) weights; one is supported, for text encoder and UNet alike")
        }
        guard let weight = Double(parts[1].filter { !$0.isWhitespace }), weight.isFinite else {
            throw invalid("\"\(parts[1].prefix(100))\" is no weight; write a number such as 0.8")
        }
        return LoRAReference(name: String(name), weight: weight)
    }
}

// A job as clients read it.

internal import Foundation
internal import HTTPTypes
internal import JSON
internal import StableDiffusion

extension JobRecord {
    /// The whole job.
    var json: JSONValue {
        guard case .object(var members) = progressJSON else { return .null }
        members["created"] = .string(Self.text(created))
        members["started"] = started.map { .string(Self.text($0)) } ?? .null
        members["finished"] = finished.map { .string(Self.text($0)) } ?? .null
        members["parameters"] = parameters
        return .object(members)
    }

    /// What changes while it is worked on, for events.
    var progressJSON: JSONValue {
        let cut = images.lazy.compactMap(\.truncatedPrompt).first
        return [
            "id": .string(id.uuidString.lowercased()),
            "state": .string(state.rawValue),
            "position": position.map { JSONValue($0) } ?? .null,
            "step": JSONValue(step),
            "steps": steps.map { JSONValue($0) } ?? .null,
            "eta": remainingSeconds.map { JSONValue(($0 * 1000).rounded() / 1000) } ?? .null,
            "images": .array(images.map(Self.json)),
            "prompt_characters_cut": cut.map { JSONValue($0.count) } ?? .null,
            "error": error,
        ]
    }

    private static func json(_ image: FinishedImage) -> JSONValue {
        let id = image.id.uuidString.lowercased()
        return [
            "id": .string(id), "url": .string("/download/\(id)"), "seed": .number(image.seed.description),
            "seconds": JSONValue((image.seconds * 1e6).rounded() / 1e6),
        ]
    }

    /// The status and the body that a client waiting for the pictures is answered.
    private var error: JSONValue {
        guard let failure else { return .null }
        let answer = failure.answer
        return [
            "status": JSONValue(answer?.status.code ?? 500),
            "detail": answer?.body["detail"] ?? "Internal Server Error. The daemon's log has the details.",
        ]
    }

    /// What was asked for with every default filled in, as `POST /generate` takes it; but for a picture it is made from.
    private var parameters: JSONValue {
        var members: JSONObject = [:]
        if let model = request.model { members["model"] = .string(model) }
        members["prompt"] = .string(request.prompt)
        members["negative_prompt"] = .string(request.negativePrompt)
        members["width"] = JSONValue(request.width)
        members["height"] = JSONValue(request.height)
        members["steps"] = JSONValue(request.steps)
        members["scale"] = JSONValue(request.guidanceScale)
        members["seed"] = .number(request.seed.description)
        members["count"] = JSONValue(count)
        members["sampler"] = .string(request.sampler.rawValue)
        members["schedule"] = .string(request.schedule?.rawValue ?? "auto")
        members["spacing"] = request.spacing.map { .string($0.rawValue) } ?? .null
        members["eta"] = request.eta.map { JSONValue($0) } ?? .null
        members["prompt_syntax"] = .string(request.promptSyntax.rawValue)
        members["clip_skip"] = JSONValue(request.clipSkip)
        members["rng"] = .string(request.noise.rawValue)
        members["loras"] = .array(request.loras.map { ["name": .string($0.name), "weight": JSONValue($0.weight)] })
        if let hires = request.hires {
            members["hires"] = [
                "scale": JSONValue(hires.scale), "strength": JSONValue(hires.strength),
                "steps": JSONValue(hires.steps ?? request.steps),
            ]
        }
        if let source = request.source { members["strength"] = JSONValue(source.strength) }
        return .object(members)
    }

    private static func text(_ date: Date) -> String {
        date.formatted(Date.ISO8601FormatStyle(includingFractionalSeconds: true))
    }

    /// The name of the event that tells of it.
    var event: String {
        switch state {
        case .queued: version == 1 ? "queued" : "position"
        case .running: "step"
        case .completed, .failed, .cancelled: state.rawValue
        }
    }
}

// The field `hires` of `POST /generate`: the second pass over a picture.

internal import JSON
public import StableDiffusion

extension GenerateSchema {
    /// Reads `{"scale": 2, "strength": 0.6, "steps": 20}`, of which all may be left out.
    func hires(_ fields: inout FieldReader) -> HiresPass {
        var pass = HiresPass()
        let limit = Int(HiresPass.maximumScale)
        pass.scale = fields.read("scale", default: pass.scale) { name, value throws(RequestProblem) in
            try number(name, value, above: 1, atMost: limit)
        }
        pass.strength = fields.read("strength", default: pass.strength) { name, value throws(RequestProblem) in
            try number(name, value, above: 0, atMost: 1)
        }
        pass.steps = fields.read("steps", default: nil) { _, value throws(RequestProblem) in
            try integer(stepsField, value)
        }
        return pass
    }

    /// What is wrong with a request's second pass together with the rest of it.
    func hiresProblem(_ request: GenerationRequest, _ body: JSONValue, multiple: Int) -> RequestProblem? {
        guard request.hires != nil else { return nil }
        let reason =
            request.source == nil
            ? configuration.limits.excess(ofSecondPass: request, multiple: multiple)
            : HiresPass.reasonAgainstSources
        return reason.map {
            RequestProblem(type: "value_error", field: "hires", "Value error, \($0)", input: body["hires"])
        }
    }

    /// The field in the OpenAPI document.
    var hiresDescription: JSONValue {
        [
            "title": "Hires",
            "type": "object",
            "nullable": true,
            "description":
                "A second pass: the image, drawn at width and height, is enlarged and drawn again from there, as image to image",
            "properties": [
                "scale": [
                    "title": "Scale",
                    "type": "number",
                    "nullable": true,
                    "description": "How many times as wide and high the image becomes",
                    "exclusiveMinimum": true,
                    "minimum": 1,
                    "maximum": JSONValue(Int(HiresPass.maximumScale)),
                    "default": 2,
                ],
                "strength": [
                    "title": "Strength",
                    "type": "number",
                    "nullable": true,
                    "description": "How far from the enlarged image the second pass begins; 1 is noise",
                    "exclusiveMinimum": true,
                    "minimum": 0,
                    "maximum": 1,
                    "default": JSONValue(HiresPass.usualStrength),
                ],
                "steps": describe(stepsField, default: nil),
            ],
        ]
    }
}

extension Configuration.Limits {
    /// What is too large about the picture of a request's second pass, if anything is; the end of a sentence about it.
    ///
    /// - Parameter multiple: What the model takes the sides of pictures in multiples of.
    public func excess(ofSecondPass request: GenerationRequest, multiple: Int) -> String? {
        let size = request.finalSize(multiple: multiple)
        guard size.width > width || size.height > height else { return nil }
        return "the picture would have \(size.width)x\(size.height) pixels; allowed are \(width)x\(height)"
    }
}

// The field `outpaint` of `POST /generate`: how far the image is continued beyond its sides. Whether that is too far for the image is said when
// the image is known.

internal import JSON

extension GenerateSchema {
    /// Reads `{"left": 64, "right": 0, "top": 0, "bottom": 0, "overlap": 16}`, of which all may be left out but one.
    func outpaint(_ fields: inout FieldReader) -> Outpainting {
        var outpainting = Outpainting()
        for (member, field) in Self.outpaintFields {
            outpainting[keyPath: member] = fields.read(field.name, default: outpainting[keyPath: member]) {
                _,
                value throws(RequestProblem) in
                try integer(field, value)
            }
        }
        return outpainting
    }

    private static var outpaintFields: [(WritableKeyPath<Outpainting, Int>, IntegerField)] {
        let beyond = "Pixels beyond this side of the image"
        let overlap =
            "Pixels of the picture along these sides of the image that are drawn anew too, so that no seam shows"
        let fields: [(WritableKeyPath<Outpainting, Int>, name: String, title: String, description: String)] = [
            (\.left, "left", "Left", beyond), (\.right, "right", "Right", beyond), (\.top, "top", "Top", beyond),
            (\.bottom, "bottom", "Bottom", beyond), (\.overlap, "overlap", "Overlap", overlap),
        ]
        return fields.map { member, name, title, description in
            let field = IntegerField(
                name: name,
                title: title,
                description: description,
                minimum: WholeNumber(0),
                maximum: WholeNumber(Outpainting.maximumMargin)
            )
            return (member, field)
        }
    }

    /// The field in the OpenAPI document.
    var outpaintDescription: JSONValue {
        var properties: JSONObject = [:]
        for (member, field) in Self.outpaintFields {
            properties[field.name] = describe(field, default: JSONValue(Outpainting()[keyPath: member]))
        }
        return [
            "title": "Outpaint",
            "type": "object",
            "nullable": true,
            "description":
                "How far the image is continued beyond its sides, in its pixels; width and height are by default those of the whole",
            "properties": .object(properties),
        ]
    }
}

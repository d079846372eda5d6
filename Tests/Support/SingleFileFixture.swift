// Single files in the original naming, as Tests/Fixtures/single-files.json describes them: the names and shapes in the file,
// and for each of diffusers' tensors which one it is, found by diffusers' own conversion.

package import JSON

/// A small model of one family.
package struct SingleFileFixture: Sendable {
    /// Which tensor of the file one of diffusers' is.
    package enum Source: Sendable {
        case whole(Int)
        case transposed(Int)
        case part(Int, index: Int, count: Int)
    }

    /// Names and shapes of the file's tensors.
    package let shapes: [(name: String, shape: [Int])]
    /// diffusers' names by component, each with its source.
    package let components: [String: [(name: String, source: Source)]]
    /// diffusers' configurations by component.
    package let configurations: [String: JSONObject]

    /// Reads the description of a family.
    package init(_ family: String) throws {
        let fixture = try Fixture.json("single-files.json")[family]
        shapes = (fixture?["shapes"]?.objectValue ?? [:]).map { ($0.name, $0.value.integers) }
        var components: [String: [(name: String, source: Source)]] = [:]
        for (component, list) in fixture?["components"]?.objectValue ?? [:] {
            components[component] = (list.objectValue ?? [:]).map { name, value in
                let numbers = value.integers
                switch numbers.count {
                case 0: return (name, .whole(value.integerValue ?? -1))
                case 1: return (name, .transposed(numbers[0]))
                default: return (name, .part(numbers[0], index: numbers[1], count: numbers[2]))
                }
            }
        }
        self.components = components
        configurations = (fixture?["configs"]?.objectValue ?? [:]).reduce(into: [:]) {
            $0[$1.name] = $1.value.objectValue
        }
    }

    /// The file's tensors with numbers that differ from each other wherever it matters.
    ///
    /// - Parameters:
    ///   - isDrawable: Whether the numbers are small enough for a model to draw with.
    ///   - change: Other shapes for some names; nil leaves a tensor out.
    package func tensors(
        isDrawable: Bool = false,
        _ change: (String, [Int]) -> [Int]? = { $1 }
    ) -> [SafetensorsTensor] {
        var start = 0
        return shapes.compactMap { name, shape in
            guard let shape = change(name, shape) else { return nil }
            let count = shape.reduce(1, *)
            defer { start += count }
            let values = (start..<(start + count)).map { (index: Int) -> Float in
                // The largest prime below 2^24: all of them are floats.
                if !isDrawable { return Float(index % 16_777_213) }
                let step: Int = (index &* 7919) % 2003 - 1001
                return Float(step) / 20000
            }
            return SafetensorsTensor(name: name, shape: shape, values: values)
        }
    }

    /// One of diffusers' tensors, made of the file's.
    package func tensor(_ name: String, _ source: Source, of tensors: [SafetensorsTensor]) -> SafetensorsTensor {
        switch source {
        case .whole(let index):
            return SafetensorsTensor(name: name, shape: tensors[index].shape, values: tensors[index].values)
        case .transposed(let index):
            let (stored, shape) = (tensors[index].values, tensors[index].shape)
            let values = (0..<stored.count).map { stored[$0 % shape[0] * shape[1] + $0 / shape[0]] }
            return SafetensorsTensor(name: name, shape: [shape[1], shape[0]], values: values)
        case .part(let tensor, let index, let count):
            let (stored, shape) = (tensors[tensor].values, tensors[tensor].shape)
            let size = stored.count / count
            return SafetensorsTensor(
                name: name,
                shape: [shape[0] / count] + shape.dropFirst(),
                values: Array(stored[(index * size)..<((index + 1) * size)])
            )
        }
    }
}

// What can be wrong with a checkpoint's weights. Each error is a full sentence that names the file and the tensor,
// because the person who reads it has only the log.

/// Why weights cannot be used.
package enum WeightsError: Error, Equatable, CustomStringConvertible {
    /// No weights that can be read were found in a component's directory.
    case noWeights(directory: String, reason: String)
    /// A file cannot be opened or read.
    case unreadable(file: String, reason: String)
    /// A file ends before the data its header describes.
    case truncated(file: String, reason: String)
    /// A file is not what it claims to be.
    case malformed(file: String, reason: String)
    /// A container, or a way to write one, that is not read here.
    case unsupportedFormat(file: String, found: String, advice: String)
    /// A pickle wants a name that no file of tensors needs.
    case forbiddenGlobal(name: String, file: String)
    /// A file is something else than what it was given as.
    case wrongKind(file: String, found: String, advice: String)
    /// A tensor the model needs is not there.
    case missing(name: String, tried: [String], source: String)
    /// A tensor has another shape than the configuration asks for.
    case shapeMismatch(name: String, expected: [Int], found: [Int], file: String)
    /// A tensor's elements are of a type that is no weight.
    case unsupportedType(name: String, type: String, file: String)
    /// A weight is infinite or not a number.
    case nonFinite(name: String, index: Int, file: String)

    /// One sentence.
    package var description: String {
        switch self {
        case .noWeights(let directory, let reason):
            "\(directory): no weights found: \(reason)"
        case .unreadable(let file, let reason):
            "\(file): \(reason)"
        case .truncated(let file, let reason):
            "\(file): the file is truncated: \(reason); download it again"
        case .malformed(let file, let reason):
            "\(file): not a valid checkpoint: \(reason)"
        case .unsupportedFormat(let file, let found, let advice):
            "\(file): \(found), which is not read here; \(advice)"
        case .forbiddenGlobal(let name, let file):
            "\(file): the pickle wants `\(name)`, which no tensor needs; nothing was executed. Do not load the file anywhere else, "
                + "and get the model as .safetensors"
        case .wrongKind(let file, let found, let advice):
            "\(file): this is \(found); \(advice)"
        case .missing(let name, let tried, let source):
            "\(source): the weight \"\(name)\" is missing" + Self.otherNames(tried.filter { $0 != name })
        case .shapeMismatch(let name, let expected, let found, let file):
            "\(file): the weight \"\(name)\" has the shape \(found), but the configuration asks for \(expected)"
        case .unsupportedType(let name, let type, let file):
            "\(file): the weight \"\(name)\" has elements of type \(type); F32, F16 and BF16 are supported"
        case .nonFinite(let name, let index, let file):
            "\(file): element \(index) of the weight \"\(name)\" is infinite or not a number; the file is damaged"
        }
    }
    private static func otherNames(_ names: [String]) -> String {
        names.isEmpty ? "" : " (also looked for \(names.joined(separator: ", ")))"
    }
}

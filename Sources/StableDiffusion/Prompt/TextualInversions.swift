// Textual inversions (Gal et al. 2022): files of vectors that take the place of a word's in the token embedding. The word is the file's name, and is
// found among the tokens of a prompt as AUTOMATIC1111's web UI 1.10 finds it (modules/textual_inversion/textual_inversion.py).

internal import Foundation

/// What a word stands for.
final class TextualInversion {
    /// The word.
    let name: String
    /// Vectors for each text encoder, equally many.
    let vectors: [[[Float]]]

    /// Reads a file: `string_to_param` of the web UI, a single tensor of diffusers, or `clip_l` and `clip_g` for Stable Diffusion XL.
    ///
    /// - Parameter widths: Of the token embeddings of the model's text encoders.
    /// - Throws: `WeightsError` for the file, `UnfitFileError` for what does not fit the model.
    init(name: String, path: String, widths: [Int]) throws {
        self.name = name
        let file = try WeightFile(path: path)
        let kind = FileKind(TensorShapes(file))
        let single = ["string_to_param.*", "emb_params"].first { file.entries[$0] != nil }
        let keys =
            file.entries["clip_l"] != nil && file.entries["clip_g"] != nil
            ? ["clip_l", "clip_g"]
            : [single ?? (file.entries.count == 1 ? file.entries.keys.first : nil)].compactMap { $0 }
        guard !keys.isEmpty else {
            throw UnfitFileError(description: "it is \(kind.words) and no textual inversion; \(kind.advice)")
        }
        let checkpoint = try Checkpoint(source: path, files: [file]) { [StoredTensor($0)] }
        let shapes = keys.map { file.entries[$0]?.shape ?? [] }
        guard shapes.map({ $0.last ?? 0 }) == widths, Set(shapes.map { $0.dropLast() }).count == 1,
            shapes.allSatisfy({ 1...2 ~= $0.count })
        else {
            throw UnfitFileError(
                description:
                    "it is \(kind.words), with tensors of the shapes \(shapes); the model's text encoders read "
                    + "vectors of \(widths.map(String.init).joined(separator: " and ")) numbers"
            )
        }
        let count = shapes[0].count == 2 ? shapes[0][0] : 1
        guard 1...Self.maximumCount ~= count else {
            throw UnfitFileError(description: "it has \(count) vectors; 1 to \(Self.maximumCount) fit a text encoder")
        }
        vectors = try zip(keys, shapes).map { key, shape in
            let values = try checkpoint.floats(named: key, shape: shape)
            let width = shape[shape.count - 1]
            return (0..<count).map { Array(values[$0 * width..<($0 + 1) * width]) }
        }
    }

    /// Tokens of a text encoder between start and end.
    private static let maximumCount = 75
}

/// The directory of textual inversions: each request looks anew.
final class TextualInversions {
    private static let endings = [".safetensors", ".pt", ".bin"]
    private static let remembered = 64

    /// Nil where none is configured.
    private let path: String?
    private let widths: [Int]
    /// The last used first.
    private var read: [(identity: LoRADirectory.Identity, inversion: TextualInversion)] = []

    /// The files of a directory, for text encoders of some widths.
    init(_ path: String?, widths: [Int]) {
        self.path = path
        self.widths = widths
    }

    /// Those whose word may be in a request's prompts, in the order of their names.
    ///
    /// - Throws: `GenerationError.invalid` for one that cannot be used.
    func named(in request: GenerationRequest) throws(GenerationError) -> [TextualInversion] {
        guard let path, let files = try? FileManager.default.contentsOfDirectory(atPath: path) else { return [] }
        let prompts = [request.prompt.lowercased(), request.negativePrompt.lowercased()]
        var found: [TextualInversion] = []
        for file in files.sorted() {
            guard let ending = Self.endings.first(where: file.hasSuffix), file.count > ending.count else { continue }
            let name = String(file.dropLast(ending.count))
            guard prompts.contains(where: { $0.containsWord(name.lowercased()) }),
                let identity = LoRADirectory.Identity(path: path + "/" + file)
            else { continue }
            found.append(try inversion(name, identity))
        }
        return found
    }

    private func inversion(_ name: String, _ identity: LoRADirectory.Identity) throws(GenerationError)
        -> TextualInversion
    {
        if let index = read.firstIndex(where: { $0.identity == identity }) {
            read.insert(read.remove(at: index), at: 0)
            return read[0].inversion
        }
        let inversion: TextualInversion
        do {
            inversion = try TextualInversion(name: name, path: identity.path, widths: widths)
        } catch let error as UnfitFileError {
            throw .invalid(field: "prompt", reason: "the embedding \"\(name)\": \(error)")
        } catch {
            // The path of the file is nothing for those who draw over the network.
            let reason = "\(error)".replacingOccurrences(of: identity.path, with: "the embedding \"\(name)\"")
            throw .invalid(field: "prompt", reason: reason)
        }
        read.insert((identity, inversion), at: 0)
        if read.count > Self.remembered { read.removeLast() }
        return inversion
    }
}

extension String {
    /// Whether a text occurs that is not the middle of a longer word.
    fileprivate func containsWord(_ word: String) -> Bool {
        var start = startIndex
        func isPart(_ character: Character?) -> Bool { character.map { $0.isLetter || $0.isNumber } ?? false }
        while let range = range(of: word, range: start..<endIndex) {
            if !isPart(self[..<range.lowerBound].last) && !isPart(self[range.upperBound...].first) { return true }
            start = index(after: range.lowerBound)
        }
        return false
    }
}

/// Tokens that others take the place of.
struct TokenReplacements {
    private let replacements: [(ids: [Int], by: [Int])]

    /// None.
    init() { replacements = [] }

    /// The words of inversions become ids from `firstID` on, one for each vector in turn.
    init(_ inversions: [TextualInversion], _ tokenizer: CLIPTokenizer, firstID: Int) {
        var next = firstID
        var replacements: [(ids: [Int], by: [Int])] = []
        for inversion in inversions {
            let count = inversion.vectors.first?.count ?? 0
            let ids = tokenizer.encode(inversion.name)
            if !ids.isEmpty { replacements.append((ids, Array(next..<next + count))) }
            next += count
        }
        // Of words that begin alike the longest.
        self.replacements = replacements.sorted { $0.ids.count > $1.ids.count }
    }

    /// The tokens, each alone but for those of one replacement.
    func groups(_ ids: [Int]) -> [[Int]] {
        guard !replacements.isEmpty else { return ids.map { [$0] } }
        var groups: [[Int]] = []
        var position = 0
        while position < ids.count {
            if let match = replacements.first(where: { ids[position...].starts(with: $0.ids) }) {
                groups.append(match.by)
                position += match.ids.count
            } else {
                groups.append([ids[position]])
                position += 1
            }
        }
        return groups
    }
}

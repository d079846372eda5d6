// Which of a repository's files are needed to draw. Repositories hold the same weights many times, for other programs and in other forms, beside parts
// that only filter or describe. The order of preference among weights is that of `StableDiffusion/Weights/WeightFiles.swift`, which reads them.

internal import Glibc

/// Which of two stored precisions is taken where there are both.
public enum WeightVariant: String, CaseIterable, Sendable {
    /// Files whose names have no variant; as the model was trained, mostly in 32 bits.
    case full
    /// `.fp16`: half the size.
    case fp16
}

/// The files to download, and what becomes of them.
public struct Selection: Sendable, Equatable {
    /// What was found.
    public enum Kind: Sendable, Equatable {
        /// A model's folder in diffusers' layout.
        case folder
        /// A folder with an autoencoder alone.
        case part
        /// One file that is a model or a LoRA.
        case file
        /// What was asked for by name.
        case named
    }

    /// What the files are.
    public let kind: Kind
    /// In the order of their paths.
    public let files: [RepositoryFile]

    private init(_ kind: Kind, _ files: [RepositoryFile]) {
        self.kind = kind
        self.files = files.sorted { $0.path < $1.path }
    }

    /// Bytes of all files.
    public var size: Int { files.reduce(0) { $0 + $1.size } }

    /// Chooses from a repository's files.
    ///
    /// - Parameters:
    ///   - variant: Taken where a part has both.
    ///   - patterns: Paths that are wanted instead of what is usually chosen; `*` stands for any characters. None is the usual.
    /// - Throws: `HubError.selection` with what is missing, or what there is to choose from.
    public init(from files: [RepositoryFile], variant: WeightVariant, patterns: [String] = []) throws(HubError) {
        let listing = Listing(files, variant)
        if !patterns.isEmpty {
            var chosen: [RepositoryFile] = []
            for pattern in patterns {
                let matching = files.filter { fnmatch(pattern, $0.path, 0) == 0 }
                guard !matching.isEmpty else {
                    throw .selection("no file is called \(pattern); \(Self.list(files))")
                }
                chosen += matching.filter { !chosen.contains($0) }
            }
            self.init(.named, chosen)
        } else if let index = listing["model_index.json"] {
            self.init(.folder, [index] + (try listing.parts()))
        } else if let configuration = listing["config.json"], let weights = listing.weights(in: "") {
            self.init(.part, [configuration] + weights)
        } else {
            let models = files.filter {
                !$0.path.contains("/") && ($0.path.hasSuffix(".safetensors") || $0.path.hasSuffix(".ckpt"))
            }
            guard models.count <= 1 else {
                throw .selection("there are several models; choose with --file: \(Self.list(models))")
            }
            guard !models.isEmpty else {
                throw .selection(
                    "there is neither a model_index.json nor a .safetensors or .ckpt file at the top; \(Self.list(files))"
                )
            }
            self.init(.file, models)
        }
    }

    private static func list(_ files: [RepositoryFile]) -> String {
        guard !files.isEmpty else { return "the repository is empty" }
        let shown = files.prefix(20).map { "\($0.path) (\(byteText($0.size)))" }.joined(separator: ", ")
        return files.count > 20 ? "\(shown) and \(files.count - 20) more" : shown
    }
}

/// A repository's files by their paths.
private struct Listing {
    private let files: [String: RepositoryFile]
    private let variant: WeightVariant

    init(_ files: [RepositoryFile], _ variant: WeightVariant) {
        self.files = Dictionary(files.map { ($0.path, $0) }) { first, _ in first }
        self.variant = variant
    }

    subscript(path: String) -> RepositoryFile? { files[path] }

    /// Every part that a model's folder is read from.
    func parts() throws(HubError) -> [RepositoryFile] {
        var result: [RepositoryFile] = []
        func need(_ path: String) throws(HubError) {
            guard let file = self[path] else { throw .selection("\(path) is missing in the repository") }
            result.append(file)
        }
        try need("scheduler/scheduler_config.json")
        let hasSecond = files.keys.contains { $0.hasPrefix("text_encoder_2/") }
        for suffix in hasSecond ? ["", "_2"] : [""] {
            let directory = "tokenizer\(suffix)/"
            if self[directory + "vocab.json"] != nil, self[directory + "merges.txt"] != nil {
                try need(directory + "vocab.json")
                try need(directory + "merges.txt")
            } else {
                try need(directory + "tokenizer.json")
            }
            for name in ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"] {
                if let file = self[directory + name] { result.append(file) }
            }
        }
        for part in ["unet", "vae", "text_encoder"] + (hasSecond ? ["text_encoder_2"] : []) {
            try need("\(part)/config.json")
            guard let weights = weights(in: "\(part)/") else {
                throw .selection("\(part) has no weights in the repository that can be read (.safetensors or .bin)")
            }
            result += weights
        }
        return result
    }

    /// One set of weights in a folder; nil where there is none.
    ///
    /// - Parameter directory: Ends in a slash, or is empty.
    func weights(in directory: String) -> [RepositoryFile]? {
        let containers = [
            ("safetensors", ["diffusion_pytorch_model", "model"]),
            ("bin", ["diffusion_pytorch_model", "pytorch_model"]),
        ]
        let variants = variant == .fp16 ? [".fp16", ""] : ["", ".fp16"]
        for (suffix, bases) in containers {
            for variant in variants {
                for base in bases {
                    if let single = self["\(directory)\(base)\(variant).\(suffix)"] { return [single] }
                    if let shards = shards(directory + base, variant, suffix) { return shards }
                }
            }
        }
        return nil
    }

    /// An index and the files it names, which have their number of all in their names: `model-00001-of-00002`, or the variant before or after it.
    private func shards(_ base: String, _ variant: String, _ suffix: String) -> [RepositoryFile]? {
        let indexes = ["\(base)\(variant).\(suffix).index.json", "\(base).\(suffix).index\(variant).json"]
        guard let index = indexes.lazy.compactMap({ self[$0] }).first else { return nil }
        let isShard = { (path: String) in
            guard path.hasPrefix(base), path.hasSuffix("." + suffix) else { return false }
            let middle = path.dropFirst(base.count).dropLast(suffix.count + 1)
            let number = middle.replacing(variant.isEmpty ? ".fp16" : variant, with: "", maxReplacements: 1)
            guard (number.count < middle.count) == !variant.isEmpty else { return false }
            return number.wholeMatch(of: /-[0-9]+-of-[0-9]+/) != nil
        }
        let shards = files.values.filter { isShard($0.path) }
        return shards.isEmpty ? nil : [index] + shards
    }
}

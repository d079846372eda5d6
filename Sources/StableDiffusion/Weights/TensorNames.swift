// The names under which published checkpoints keep the same tensor. The models ask by the names of today's diffusers
// and transformers; this is the only place that knows the others.

/// Where a tensor that a model asks for is kept: a tensor of a file, or a part of one.
package struct StoredTensor: Sendable, Equatable {
    /// One of several equal parts of the first dimension.
    package struct Part: Sendable, Equatable {
        let index: Int
        let count: Int
    }

    /// The name in the file.
    package var name: String
    /// Which rows; nil for all.
    package var part: Part?
    /// Whether rows and columns are exchanged.
    package var isTransposed = false

    /// A whole tensor, as it is.
    init(_ name: String, part: Part? = nil, isTransposed: Bool = false) {
        self.name = name
        self.part = part
        self.isTransposed = isTransposed
    }
}

/// Gives the places at which the tensor of a name can be, the likeliest first.
package typealias TensorNaming = @Sendable (_ name: String) -> [StoredTensor]

/// Other spellings of tensor names.
enum TensorNames {
    /// The naming of the files in a diffusers folder.
    static let diffusers: TensorNaming = { name in spellings(of: name).map { StoredTensor($0) } }

    /// Parts of an attention as the autoencoders on the hub have them, from before diffusers 0.15.
    private static let oldAttentionNames = [
        ("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"),
    ]

    /// All spellings of a name, the given one first.
    ///
    /// - The text encoder's names begin with `text_model.` in older files and without it in those of transformers 5.
    /// - The autoencoder's attention has `query`, `key`, `value` and `proj_attn` in older files.
    static func spellings(of name: String) -> [String] {
        var names = [name]
        for (new, old) in oldAttentionNames {
            if let range = name.range(ofPart: new) {
                names.append(name.replacingSubrange(range, with: old))
            }
        }
        let prefix = "text_model."
        if name.hasPrefix(prefix) {
            names.append(String(name.dropFirst(prefix.count)))
        } else if name.hasPrefix("embeddings.") || name.hasPrefix("encoder.layers.")
            || name.hasPrefix("final_layer_norm.")
        {
            names.append(prefix + name)
        }
        return names
    }
}

extension String {
    /// Where a part stands in a dotted path, between dots and not at either end.
    fileprivate func range(ofPart part: String) -> Range<Index>? {
        let needle = Array(".\(part).".utf8)
        let bytes = Array(utf8)
        guard bytes.count > needle.count else { return nil }
        for start in 0...(bytes.count - needle.count)
        where bytes[start..<(start + needle.count)].elementsEqual(needle) {
            let lower = utf8.index(utf8.startIndex, offsetBy: start + 1)
            return lower..<utf8.index(lower, offsetBy: needle.count - 2)
        }
        return nil
    }

    fileprivate func replacingSubrange(_ range: Range<Index>, with text: String) -> String {
        String(self[..<range.lowerBound]) + text + String(self[range.upperBound...])
    }
}

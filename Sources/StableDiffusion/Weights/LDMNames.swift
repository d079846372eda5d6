// The names of single files, which are those of the program Stable Diffusion was trained with (CompVis/latent-diffusion,
// Stability-AI/generative-models) and of OpenCLIP, as functions of diffusers' names. Where each goes was read off diffusers
// 0.42.1, loaders/single_file_utils.py, which converts the other way round.

/// Names of the UNet, which are numbers of blocks in one long row.
struct LDMUNetNames: Sendable {
    /// ResNet blocks of each level on the way down.
    let layersPerBlock: [Int]
    /// Whether each up block has transformers, the lowest resolution first; the upsampler comes after them.
    let upBlocksHaveAttention: [Bool]

    /// What stands before every name.
    static let prefix = "model.diffusion_model."

    private static let layers = [
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    ]
    private static let resnetLayers = [
        "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
        "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
    ]

    /// The name of a tensor; nil for one that such files cannot have.
    func callAsFunction(_ name: String) -> [StoredTensor] {
        stored(name).map { [StoredTensor(Self.prefix + $0)] } ?? []
    }

    private func stored(_ name: String) -> String? {
        let parts = name.split(separator: ".")
        // The module, which the table or the numbers of blocks locate, and what stands below it.
        for length in [1, 2, 3] where length < parts.count {
            guard let module = Self.layers[parts[..<length].joined(separator: ".")] else { continue }
            let rest = parts[length...]
            return module + "." + (parts.contains("resnets") ? Self.resnet(rest) : rest.joined(separator: "."))
        }
        guard parts.count > 4, let block = Int(parts[1]), let layer = Int(parts[3]), layersPerBlock.indices ~= block,
            layer >= 0
        else { return nil }
        let (rest, levels) = (parts[4...], layersPerBlock.count)
        switch (parts[0], parts[2]) {
        case ("down_blocks", let kind):
            let first = 1 + layersPerBlock[..<block].reduce(0) { $0 + $1 + 1 }
            switch kind {
            case "resnets": return "input_blocks.\(first + layer).0." + Self.resnet(rest)
            case "attentions": return "input_blocks.\(first + layer).1." + rest.joined(separator: ".")
            case "downsamplers":
                return "input_blocks.\(first + layersPerBlock[block]).0.op." + rest.dropFirst().joined(separator: ".")
            default: return nil
            }
        case ("up_blocks", let kind):
            let counts = (0..<levels).map { layersPerBlock[levels - 1 - $0] + 1 }
            let first = counts[..<block].reduce(0, +)
            switch kind {
            case "resnets": return "output_blocks.\(first + layer).0." + Self.resnet(rest)
            case "attentions": return "output_blocks.\(first + layer).1." + rest.joined(separator: ".")
            case "upsamplers":
                let place = upBlocksHaveAttention[block] ? 2 : 1
                return "output_blocks.\(first + counts[block] - 1).\(place)." + rest.joined(separator: ".")
            default: return nil
            }
        default: return nil
        }
    }

    private static func resnet(_ parts: ArraySlice<Substring>) -> String {
        guard let first = parts.first else { return "" }
        return ([resnetLayers[String(first)] ?? String(first)] + parts.dropFirst().map(String.init))
            .joined(separator: ".")
    }
}

/// Names of the autoencoder, whose up blocks are numbered from the other end.
struct LDMAutoencoderNames: Sendable {
    /// Levels of resolution.
    let levels: Int
    /// What stands before every name: `first_stage_model.` in a whole model, nothing in a file of its own.
    let prefix: String

    private static let attentionLayers = [
        "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
    ]

    /// The name of a tensor; none for one that such files cannot have.
    func callAsFunction(_ name: String) -> [StoredTensor] {
        stored(name).map { [StoredTensor(prefix + $0)] } ?? []
    }

    private func stored(_ name: String) -> String? {
        let parts = name.split(separator: ".").map(String.init)
        guard parts.count > 2, ["encoder", "decoder"].contains(parts[0]) else { return name }
        let half = parts[0]
        let rest = parts[parts.count > 4 ? 4... : parts.endIndex...].joined(separator: ".")
        switch parts[1] {
        case "conv_norm_out": return "\(half).norm_out.\(parts[2])"
        case "mid_block":
            guard parts.count > 4, let index = Int(parts[3]) else { return nil }
            if parts[2] == "resnets" { return "\(half).mid.block_\(index + 1).\(rest)" }
            let layer = parts[4..<(parts.count - 1)].joined(separator: ".")
            return Self.attentionLayers[layer].map { "\(half).mid.attn_\(index + 1).\($0).\(parts[parts.count - 1])" }
        case "down_blocks", "up_blocks":
            guard parts.count > 4, let block = Int(parts[2]), 0..<levels ~= block else { return nil }
            let below = parts[5...].joined(separator: ".")
            let path = parts[1] == "down_blocks" ? "\(half).down.\(block)" : "\(half).up.\(levels - 1 - block)"
            switch parts[3] {
            case "resnets":
                return "\(path).block.\(parts[4])."
                    + (below.hasPrefix("conv_shortcut.") ? "nin" + below.dropFirst("conv".count) : below)
            case "downsamplers": return "\(path).downsample.\(below)"
            case "upsamplers": return "\(path).upsample.\(below)"
            default: return nil
            }
        default: return name
        }
    }
}

/// Names of OpenAI's text encoder within a single file: transformers' own, behind a prefix.
struct LDMCLIPNames: Sendable {
    /// What stands before every name, such as `cond_stage_model.transformer.`.
    let prefix: String

    /// The names of a tensor: some merges leave `text_model.` out.
    func callAsFunction(_ name: String) -> [StoredTensor] {
        TensorNames.spellings(of: name).sorted { $0.count > $1.count }.map { StoredTensor(prefix + $0) }
    }
}

/// Names of OpenCLIP's text encoders: Stable Diffusion 2.x and the second one of SDXL.
struct OpenCLIPNames: Sendable {
    /// What stands before every name, such as `cond_stage_model.model.`.
    let prefix: String

    private static let layers = [
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias",
    ]
    private static let blockLayers = [
        "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    ]
    private static let projections = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]

    /// The name of a tensor, or the part of one that it is.
    func callAsFunction(_ name: String) -> [StoredTensor] {
        stored(name.hasPrefix("text_model.") ? String(name.dropFirst("text_model.".count)) : name)
            .map { stored in
                var stored = stored
                stored.name = prefix + stored.name
                return [stored]
            } ?? []
    }

    private func stored(_ name: String) -> StoredTensor? {
        if let layer = Self.layers[name] { return StoredTensor(layer) }
        // A parameter that is multiplied from the right, not a linear layer.
        if name == "text_projection.weight" { return StoredTensor("text_projection", isTransposed: true) }
        let parts = name.split(separator: ".")
        guard name.hasPrefix("encoder.layers."), parts.count > 4 else { return nil }
        let block = "transformer.resblocks.\(parts[2])"
        let (layer, kind) = (parts[3..<(parts.count - 1)].joined(separator: "."), parts[parts.count - 1])
        if let index = Self.projections.firstIndex(of: layer) {
            return StoredTensor("\(block).attn.in_proj_\(kind)", part: .init(index: index, count: 3))
        }
        return Self.blockLayers[layer].map { StoredTensor("\(block).\($0).\(kind)") }
    }
}

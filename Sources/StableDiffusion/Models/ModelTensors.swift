// The tensors each model reads, by diffusers' names and with their shapes, known from the configuration alone: a checkpoint
// is compared with them before a device is opened, and `diffused inspect` names what is missing. The models read the same
// names in the same walk down the module tree (UNetBlocks, Attention, AutoencoderKL, CLIPTextModel).

/// A tensor that a model reads.
struct ModelTensor: Sendable, Equatable {
    /// diffusers' name of it.
    let name: String
    /// As PyTorch has it: `[outChannels, inChannels, height, width]` of a convolution.
    let shape: [Int]
}

/// Lists the tensors of a model's layers.
private struct TensorList {
    private(set) var tensors: [ModelTensor] = []

    mutating func add(_ name: String, _ shape: Int...) {
        tensors.append(ModelTensor(name: name, shape: shape))
    }

    mutating func norm(_ name: String, _ channels: Int) {
        add(name + ".weight", channels)
        add(name + ".bias", channels)
    }

    mutating func linear(_ name: String, _ inChannels: Int, _ outChannels: Int, hasBias: Bool = true) {
        add(name + ".weight", outChannels, inChannels)
        if hasBias { add(name + ".bias", outChannels) }
    }

    mutating func convolution(_ name: String, _ inChannels: Int, _ outChannels: Int, size: Int = 3) {
        add(name + ".weight", outChannels, inChannels, size, size)
        add(name + ".bias", outChannels)
    }

    mutating func resnet(_ name: String, _ inChannels: Int, _ outChannels: Int, timeChannels: Int? = nil) {
        norm(name + ".norm1", inChannels)
        convolution(name + ".conv1", inChannels, outChannels)
        if let timeChannels { linear(name + ".time_emb_proj", timeChannels, outChannels) }
        norm(name + ".norm2", outChannels)
        convolution(name + ".conv2", outChannels, outChannels)
        if inChannels != outChannels { convolution(name + ".conv_shortcut", inChannels, outChannels, size: 1) }
    }
}

extension UNet2DConditionModelConfiguration {
    /// The tensors of the UNet.
    var tensors: [ModelTensor] {
        var list = TensorList()
        let channels = blockOutChannels
        list.linear("time_embedding.linear_1", channels[0], timeEmbeddingDim)
        list.linear("time_embedding.linear_2", timeEmbeddingDim, timeEmbeddingDim)
        if let timeCondProjDim { list.linear("time_embedding.cond_proj", timeCondProjDim, channels[0], hasBias: false) }
        if let textTime {
            list.linear("add_embedding.linear_1", textTime.inputDim, timeEmbeddingDim)
            list.linear("add_embedding.linear_2", timeEmbeddingDim, timeEmbeddingDim)
        }
        list.convolution("conv_in", inChannels, channels[0])
        for level in 0..<levels {
            let block = "down_blocks.\(level)"
            for layer in 0..<layersPerBlock[level] {
                let inChannels = layer > 0 ? channels[level] : channels[max(level - 1, 0)]
                list.resnet("\(block).resnets.\(layer)", inChannels, channels[level], timeChannels: timeEmbeddingDim)
                if downBlockTypes[level] == .crossAttnDownBlock2D {
                    transformer("\(block).attentions.\(layer)", level, &list)
                }
            }
            if level < levels - 1 {
                list.convolution("\(block).downsamplers.0.conv", channels[level], channels[level])
            }
        }
        if midBlockType != nil {
            let width = channels[levels - 1]
            for layer in 0..<2 {
                list.resnet("mid_block.resnets.\(layer)", width, width, timeChannels: timeEmbeddingDim)
            }
            transformer("mid_block.attentions.0", levels - 1, &list)
        }
        for index in 0..<levels {
            let (block, level) = ("up_blocks.\(index)", levels - 1 - index)
            let count = layersPerBlock[level] + 1
            let previous = channels[min(level + 1, levels - 1)]
            for layer in 0..<count {
                let inChannels = layer == 0 ? previous : channels[level]
                let skipChannels = layer == count - 1 ? channels[max(level - 1, 0)] : channels[level]
                list.resnet(
                    "\(block).resnets.\(layer)",
                    inChannels + skipChannels,
                    channels[level],
                    timeChannels: timeEmbeddingDim
                )
                if upBlockTypes[index] == .crossAttnUpBlock2D {
                    transformer("\(block).attentions.\(layer)", level, &list)
                }
            }
            if level > 0 { list.convolution("\(block).upsamplers.0.conv", channels[level], channels[level]) }
        }
        list.norm("conv_norm_out", channels[0])
        list.convolution("conv_out", channels[0], outChannels)
        return list.tensors
    }

    private func transformer(_ name: String, _ level: Int, _ list: inout TensorList) {
        let width = blockOutChannels[level]
        list.norm(name + ".norm", width)
        // A 1x1 convolution's shape is the same as a linear layer's to whoever reads it.
        list.linear(name + ".proj_in", width, width)
        for index in 0..<transformerLayersPerBlock[level] {
            let block = "\(name).transformer_blocks.\(index)"
            for norm in 1...3 { list.norm("\(block).norm\(norm)", width) }
            for (attention, inChannels) in [("attn1", width), ("attn2", crossAttentionDim)] {
                list.linear("\(block).\(attention).to_q", width, width, hasBias: false)
                list.linear("\(block).\(attention).to_k", inChannels, width, hasBias: false)
                list.linear("\(block).\(attention).to_v", inChannels, width, hasBias: false)
                list.linear("\(block).\(attention).to_out.0", width, width)
            }
            list.linear("\(block).ff.net.0.proj", width, 8 * width)
            list.linear("\(block).ff.net.2", 4 * width, width)
        }
        list.linear(name + ".proj_out", width, width)
    }
}

extension AutoencoderKLConfiguration {
    /// The tensors of the decoder.
    var decoderTensors: [ModelTensor] {
        var list = TensorList()
        let channels = [Int](blockOutChannels.reversed())
        if usePostQuantConv { list.convolution("post_quant_conv", latentChannels, latentChannels, size: 1) }
        list.convolution("decoder.conv_in", latentChannels, channels[0])
        middle("decoder", channels[0], &list)
        for (index, width) in channels.enumerated() {
            let block = "decoder.up_blocks.\(index)"
            for layer in 0...layersPerBlock {
                list.resnet("\(block).resnets.\(layer)", layer == 0 ? channels[max(index - 1, 0)] : width, width)
            }
            if index < channels.count - 1 { list.convolution("\(block).upsamplers.0.conv", width, width) }
        }
        list.norm("decoder.conv_norm_out", channels[channels.count - 1])
        list.convolution("decoder.conv_out", channels[channels.count - 1], outChannels)
        return list.tensors
    }

    /// The tensors of the encoder, which turns pictures into latents.
    var encoderTensors: [ModelTensor] {
        var list = TensorList()
        let channels = blockOutChannels
        list.convolution("encoder.conv_in", outChannels, channels[0])
        for (level, width) in channels.enumerated() {
            let block = "encoder.down_blocks.\(level)"
            for layer in 0..<layersPerBlock {
                list.resnet("\(block).resnets.\(layer)", layer == 0 ? channels[max(level - 1, 0)] : width, width)
            }
            if level < channels.count - 1 { list.convolution("\(block).downsamplers.0.conv", width, width) }
        }
        middle("encoder", channels[channels.count - 1], &list)
        list.norm("encoder.conv_norm_out", channels[channels.count - 1])
        list.convolution("encoder.conv_out", channels[channels.count - 1], 2 * latentChannels)
        if useQuantConv { list.convolution("quant_conv", 2 * latentChannels, 2 * latentChannels, size: 1) }
        return list.tensors
    }

    private func middle(_ half: String, _ width: Int, _ list: inout TensorList) {
        for layer in 0..<2 { list.resnet("\(half).mid_block.resnets.\(layer)", width, width) }
        guard midBlockAddAttention else { return }
        let attention = "\(half).mid_block.attentions.0"
        list.norm(attention + ".group_norm", width)
        for layer in ["to_q", "to_k", "to_v", "to_out.0"] { list.linear("\(attention).\(layer)", width, width) }
    }
}

extension CLIPTextModelConfiguration {
    /// The tensors of the text encoder.
    var tensors: [ModelTensor] {
        var list = TensorList()
        list.add("embeddings.token_embedding.weight", vocabSize, hiddenSize)
        list.add("embeddings.position_embedding.weight", maxPositionEmbeddings, hiddenSize)
        for index in 0..<layers {
            let layer = "encoder.layers.\(index)"
            for norm in 1...2 { list.norm("\(layer).layer_norm\(norm)", hiddenSize) }
            for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                list.linear("\(layer).self_attn.\(name)", hiddenSize, hiddenSize)
            }
            list.linear("\(layer).mlp.fc1", hiddenSize, intermediateSize)
            list.linear("\(layer).mlp.fc2", intermediateSize, hiddenSize)
        }
        list.norm("final_layer_norm", hiddenSize)
        if let projectionDim { list.linear("text_projection", hiddenSize, projectionDim, hasBias: false) }
        return list.tensors
    }
}

// The denoising network (Rombach et al. 2022), after diffusers 0.42.1 models/unets/unet_2d_condition.py.

internal import Foundation
internal import TensorOps

/// Predicts the noise (or velocity) in latents, given the timestep and the encoded prompt.
struct UNet2DConditionModel {
    private let configuration: UNet2DConditionModelConfiguration
    private let device: TensorDevice
    private let crossAttentions = CrossAttentionList()
    private let timeLinear1: Linear
    private let timeLinear2: Linear
    private let convIn: Conv2d
    private let downBlocks: [DownBlock2D]
    private let midBlock: UNetMidBlock2DCrossAttn?
    private let upBlocks: [UpBlock2D]
    private let convNormOut: GroupNorm
    private let convOut: Conv2d

    /// Reads the weights.
    init(_ loader: WeightLoader, _ configuration: UNet2DConditionModelConfiguration, on device: TensorDevice) throws {
        self.configuration = configuration
        self.device = device
        let channels = configuration.blockOutChannels
        let timeChannels = configuration.timeEmbeddingDim
        timeLinear1 = try Linear(loader.at("time_embedding.linear_1"), channels[0], timeChannels, on: device)
        timeLinear2 = try Linear(loader.at("time_embedding.linear_2"), timeChannels, timeChannels, on: device)
        convIn = try Conv2d(loader.at("conv_in"), configuration.inChannels, channels[0], on: device)
        let loading = UNetBlockLoading(configuration: configuration, crossAttentions: crossAttentions, device: device)
        downBlocks = try (0..<configuration.levels).map {
            try DownBlock2D(loader.at("down_blocks.\($0)"), level: $0, loading)
        }
        midBlock =
            configuration.midBlockType == nil ? nil : try UNetMidBlock2DCrossAttn(loader.at("mid_block"), loading)
        upBlocks = try (0..<configuration.levels).map {
            try UpBlock2D(loader.at("up_blocks.\($0)"), index: $0, loading)
        }
        convNormOut = try GroupNorm(
            loader.at("conv_norm_out"),
            channels[0],
            groups: configuration.normNumGroups,
            epsilon: configuration.normEps,
            on: device
        )
        convOut = try Conv2d(loader.at("conv_out"), channels[0], configuration.outChannels, on: device)
    }

    /// What the cross-attentions need of encoded prompts `[B, T, crossAttentionDim]`, once for all steps.
    func context(of encoderHiddenStates: Tensor) throws -> CrossAttentionContext {
        try crossAttentions.context(of: encoderHiddenStates)
    }

    /// The prediction for a batch of latents, all at one timestep.
    ///
    /// - Parameters:
    ///   - sample: `[B, H, W, inChannels]`.
    ///   - timestep: 0 ..< 1000, not necessarily whole.
    ///   - context: Of B prompts.
    ///   - observe: Called with the name and output of every block, for tests.
    /// - Returns: `[B, H, W, outChannels]`.
    func callAsFunction(
        _ sample: Tensor,
        timestep: Double,
        _ context: CrossAttentionContext,
        observe: ((String, Tensor) throws -> Void)? = nil
    ) throws -> Tensor {
        // 1. time; every resnet begins with the SiLU of the embedding, so it is applied here, once
        let timestepRow = timestepEmbedding(timestep)
        let timesteps = try device.tensor(
            (0..<sample.shape[0]).flatMap { _ in timestepRow },
            shape: [sample.shape[0], timestepRow.count]
        )
        let timeEmbedding = try timeLinear2(
            timeLinear1(timesteps, function: .silu, isOperand: true),
            function: .silu,
            isOperand: true
        )

        // 2. down, keeping what the way up will need
        var x = try convIn(sample)
        try observe?("conv_in", x)
        var skips = [x]
        for (index, block) in downBlocks.enumerated() {
            x = try block(x, timeEmbedding: timeEmbedding, context, skips: &skips)
            try observe?("down_blocks.\(index)", x)
        }

        // 3. middle
        if let midBlock {
            x = try midBlock(consume x, timeEmbedding: timeEmbedding, context)
            try observe?("mid_block", x)
        }

        // 4. up
        for (index, block) in upBlocks.enumerated() {
            x = try block(consume x, timeEmbedding: timeEmbedding, context, skips: &skips)
            try observe?("up_blocks.\(index)", x)
        }

        // 5. out
        return try convOut(convNormOut(consume x, function: .silu))
    }

    /// The sinusoidal embedding of a timestep, in float32 step by step as diffusers' `get_timestep_embedding` computes it.
    private func timestepEmbedding(_ timestep: Double) -> [Float] {
        let width = configuration.blockOutChannels[0]
        let half = width / 2
        let logPeriod = Float(-log(10000.0))
        let arguments = (0..<half).map { index in
            let exponent = logPeriod * Float(index) / (Float(half) - Float(configuration.freqShift))
            return Float(timestep) * Float(exp(Double(exponent)))
        }
        let sines = arguments.map { Float(sin(Double($0))) }
        let cosines = arguments.map { Float(cos(Double($0))) }
        return (configuration.flipSinToCos ? cosines + sines : sines + cosines)
            + [Float](repeating: 0, count: width % 2)
    }
}

// Pseudo numerical methods for diffusion models (Liu et al. 2022), with the numbers of diffusers 0.42.1
// (schedulers/scheduling_pndm.py). Other programs call it PLMS.

extension SamplerSetup {
    /// The PNDM sampler: linear multistep of order 4, begun by Runge-Kutta steps or, as Stable Diffusion's own files say, by lower orders.
    ///
    /// The first step of the latter evaluates the model twice; Runge-Kutta's three steps four times each. Those need four steps at least and are
    /// left out of shorter runs, for which diffusers has no answer, and of runs that begin with a picture. Otherwise these begin as any other,
    /// at a later timestep. (diffusers then leaves out the second evaluation of the first step, after which its timesteps are one ahead of its
    /// samples.)
    func pndm() -> SamplerProgram {
        let transfer = Transfer(self)
        let timesteps = spacing.timesteps(
            steps,
            of: configuration.numTrainTimesteps,
            offset: configuration.stepsOffset,
            isRounded: true
        )[firstStep...].map { Int($0) }
        let ratio = configuration.numTrainTimesteps / steps
        var builder = SamplerProgramBuilder(initNoiseSigma: 1)
        var x = builder.firstSample
        var outputs: [Combination] = []
        var first = 0

        if !configuration.skipPRKSteps && firstStep == 0 && steps >= 4 {
            let half = ratio / 2
            for (timestep, next) in zip(timesteps, timesteps[1...3]) {
                let middle = next + half
                let output1 = builder.evaluate(x, at: Double(timestep), level: transfer.level(timestep))
                let x1 = builder.keep(transfer(x, from: timestep, to: timestep - half, output1))
                let output2 = builder.evaluate(x1, at: Double(middle), level: transfer.level(middle))
                let x2 = builder.keep(transfer(x, from: timestep, to: middle, output2))
                let output3 = builder.evaluate(x2, at: Double(middle), level: transfer.level(middle))
                let x3 = builder.keep(transfer(x, from: timestep, to: middle - half, output3))
                let output4 = builder.evaluate(x3, at: Double(next), level: transfer.level(next))
                let mean = (output1 + 2 * output2 + 2 * output3 + output4) / 6
                x = builder.keep(transfer(x, from: timestep, to: next, mean))
                builder.endStep()
                outputs.append(output1)
            }
            first = 3
        } else if timesteps.count >= 2 {
            let output1 = builder.evaluate(x, at: Double(timesteps[0]), level: transfer.level(timesteps[0]))
            let x1 = builder.keep(transfer(x, from: timesteps[0], to: timesteps[0] - ratio, output1))
            let output2 = builder.evaluate(x1, at: Double(timesteps[1]), level: transfer.level(timesteps[1]))
            x = builder.keep(
                transfer(x, from: timesteps[1] + ratio, to: timesteps[1], (output1 + output2) / 2)
            )
            builder.endStep()
            outputs.append(output1)
            first = 1
        }

        for timestep in timesteps[first...] {
            outputs.append(builder.evaluate(x, at: Double(timestep), level: transfer.level(timestep)))
            // Adams-Bashforth of the order there are outputs for.
            let o = Array(outputs.suffix(4).reversed())
            let mean =
                switch o.count {
                case 1: o[0]
                case 2: (3 * o[0] - o[1]) / 2
                case 3: (23 * o[0] - 16 * o[1] + 5 * o[2]) / 12
                default: (55 * o[0] - 59 * o[1] + 37 * o[2] - 9 * o[3]) / 24
                }
            x = builder.keep(transfer(x, from: timestep, to: timestep - ratio, mean))
            builder.endStep()
        }
        return builder.program
    }

    /// The transfer of a sample from one timestep to another, equation 11 of the paper.
    private struct Transfer {
        let alphas: [Float]
        let final: Float
        let prediction: SchedulerConfiguration.PredictionType

        init(_ setup: SamplerSetup) {
            alphas = setup.alphasCumprod
            final = setup.configuration.setAlphaToOne ?? false ? 1 : alphas[0]
            prediction = setup.configuration.predictionType
        }

        func callAsFunction(_ x: Combination, from timestep: Int, to next: Int, _ output: Combination) -> Combination {
            let (alpha, nextAlpha) = (Double(self.alpha(timestep)), Double(self.alpha(next)))
            let noise = prediction.noise(x, output, NoiseLevel(alphaCumprod: self.alpha(timestep)))
            let denominator =
                alpha * (1 - nextAlpha).squareRoot() + (alpha * (1 - alpha) * nextAlpha).squareRoot()
            return (nextAlpha / alpha).squareRoot() * x - ((nextAlpha - alpha) / denominator) * noise
        }

        func level(_ timestep: Int) -> NoiseLevel { NoiseLevel(alphaCumprod: alpha(timestep)) }

        private func alpha(_ timestep: Int) -> Float {
            timestep >= 0 ? alphas[min(timestep, alphas.count - 1)] : final
        }
    }
}

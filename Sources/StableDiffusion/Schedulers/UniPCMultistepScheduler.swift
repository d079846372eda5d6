// The unified predictor-corrector UniPC of order 2 with B(h) = e^h - 1 (Zhao et al. 2023), predicting the picture, with the numbers of
// diffusers 0.42.1 (schedulers/scheduling_unipc_multistep.py, solver_type bh2).

internal import Glibc

extension SamplerSetup {
    /// The UniPC sampler: each output of the model first corrects the sample it was made of, then predicts the next.
    func uniPC() -> SamplerProgram {
        let visited = multistepSigmaSteps { sigmas, table in
            guard configuration.finalSigmasType == .sigmaMin else { return 0 }
            return schedule == .uniform ? table.sigmas[0] : sigmas[sigmas.count - 1]
        }
        let prediction = configuration.predictionType
        var builder = SamplerProgramBuilder(initNoiseSigma: visited.initNoiseSigma)
        var predicted = builder.firstSample
        var x = predicted
        var pictures: [Combination] = []
        var order = 0
        for (index, timestep) in visited.timesteps.enumerated() {
            let output = builder.evaluate(predicted, at: timestep, level: NoiseLevel(sigma: visited.sigmas[index]))
            let picture = prediction.picture(predicted, output, NoiseLevel(sigma: visited.sigmas[index]))
            if index == 0 || configuration.disableCorrector.contains(index - 1) {
                x = predicted
            } else {
                x = builder.keep(correction(x, pictures, picture, order: order, visited.sigmas, index))
            }
            pictures = pictures.suffix(1) + [picture]
            order = min(configuration.lowerOrderFinal ? min(2, visited.timesteps.count - index) : 2, index + 1)
            predicted = builder.keep(self.prediction(x, pictures, order: order, visited.sigmas, index))
            builder.endStep()
        }
        return builder.program
    }

    /// The predictor from level `index` to the next, equation 11 with the coefficients of section 3.3.
    ///
    /// - Parameter pictures: The picture seen at the level before, if there was one, and at this.
    private func prediction(
        _ x: Combination,
        _ pictures: [Combination],
        order: Int,
        _ sigmas: [Double],
        _ index: Int
    ) -> Combination {
        let (level, next) = (NoiseLevel(sigma: sigmas[index]), NoiseLevel(sigma: sigmas[index + 1]))
        // e^-h - 1, the growth of the picture; a last σ of 0 makes h infinite.
        let growth = sigmas[index + 1] / sigmas[index] - 1
        let picture = pictures[pictures.count - 1]
        var slope = picture
        if order == 2 {
            let h = log(sigmas[index] / sigmas[index + 1])
            let r = log(sigmas[index] / sigmas[index - 1]) / h
            slope = picture + 0.5 / r * (pictures[0] - picture)
        }
        return next.noise / level.noise * x - next.signal * growth * slope
    }

    /// The corrector of the step that led to level `index`, equation 8: as the predictor, with the picture seen there as one more point.
    private func correction(
        _ x: Combination,
        _ pictures: [Combination],
        _ picture: Combination,
        order: Int,
        _ sigmas: [Double],
        _ index: Int
    ) -> Combination {
        let (last, level) = (NoiseLevel(sigma: sigmas[index - 1]), NoiseLevel(sigma: sigmas[index]))
        let h = log(sigmas[index - 1] / sigmas[index])
        let growth = expm1(-h)
        let earlier = pictures[pictures.count - 1]
        var change = 0.5 * (picture - earlier)
        if order == 2 {
            let r = log(sigmas[index - 1] / sigmas[index - 2]) / h
            // φ_2 and φ_3 of the exponential integrator, and the system of equation 12.
            let phi2 = growth / -h - 1
            let phi3 = phi2 / -h - 0.5
            let (b1, b2) = (phi2 / growth, 2 * phi3 / growth)
            let weight = (b1 - b2) / (1 - r)
            change = weight / r * (pictures[0] - earlier) + (b1 - weight) * (picture - earlier)
        }
        return level.noise / last.noise * x - level.signal * growth * (earlier + change)
    }
}

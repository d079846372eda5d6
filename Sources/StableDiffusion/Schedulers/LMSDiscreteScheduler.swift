// Linear multistep in σ (Katherine Crowson's, for Karras et al. 2022), with the numbers of diffusers 0.42.1
// (schedulers/scheduling_lms_discrete.py).

extension SamplerSetup {
    /// Linear multistep of order 4, the first steps of as many as there are slopes.
    ///
    /// A run that begins with a picture begins with order 1 as well. (diffusers then integrates polynomials through levels that were left out.)
    func lms() -> SamplerProgram {
        let visited = sigmaSteps()
        let prediction = configuration.predictionType
        var builder = SamplerProgramBuilder(initNoiseSigma: visited.initNoiseSigma)
        var x = builder.firstSample
        var derivatives: [Combination] = []
        for (index, timestep) in visited.timesteps.enumerated() {
            let sigma = visited.sigmas[index]
            let output = builder.evaluate(x, at: timestep, sigma: sigma)
            derivatives.append((x - prediction.picture(x, output, sigma: sigma)) / sigma)
            let latest = Array(derivatives.suffix(4).reversed())
            let nodes = latest.indices.map { visited.sigmas[index - $0] }
            x = builder.keep(
                zip(latest.indices, latest).reduce(x) { sum, slope in
                    sum + lagrangeIntegral(nodes, slope.0, from: sigma, to: visited.sigmas[index + 1]) * slope.1
                }
            )
            builder.endStep()
        }
        return builder.program
    }
}

/// The integral of the polynomial that is 1 at one of the nodes, at most four, and 0 at the others.
private func lagrangeIntegral(_ nodes: [Double], _ one: Int, from start: Double, to end: Double) -> Double {
    // Gauss and Legendre's two points are exact up to degree 3.
    let (middle, half) = ((start + end) / 2, (end - start) / 2)
    let offset = half / 3.0.squareRoot()
    return [middle - offset, middle + offset].reduce(0) { sum, point in
        sum
            + half
            * nodes.indices.reduce(1.0) { product, other in
                other == one ? product : product * (point - nodes[other]) / (nodes[one] - nodes[other])
            }
    }
}

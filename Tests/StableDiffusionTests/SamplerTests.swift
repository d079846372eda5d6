// Every sampler against diffusers 0.42.1 (Tests/Fixtures/samplers.json), run on plain numbers: timesteps, noise levels and the samples after
// every evaluation. What a sampler cannot do is refused, and its names are understood.

import Foundation
import JSON
import TestSupport
import Testing

@testable import StableDiffusion

/// The sum of lists of numbers, each times its factor.
func weightedSum(_ terms: [(coefficient: Double, value: [Double])]) -> [Double] {
    terms.reduce(into: [Double](repeating: 0, count: terms.first?.value.count ?? 0)) { sum, term in
        for index in sum.indices { sum[index] += term.coefficient * term.value[index] }
    }
}

/// One run of the fixture.
struct SamplerCase: CustomTestStringConvertible, Sendable {
    let name: String
    let sampler: Sampler
    let setup: SamplerSetup
    let timesteps: [Double]
    let sigmas: [Double]
    /// The samples after every evaluation.
    let samples: [[Double]]

    var testDescription: String { name }

    private static let fixture = Result { try Fixture.json("samplers.json") }

    static func all(_ sampler: Sampler) throws -> (first: [Double], cases: [SamplerCase]) {
        let fixture = try fixture.get()
        let first = fixture["first"]?.doubles ?? []
        let defaults = try #require(fixture["defaults"]?.objectValue)
        let runs = try #require(fixture["runs"]?.arrayValue).filter { $0["sampler"]?.stringValue == sampler.rawValue }
        return (
            first,
            try runs.map { run in
                var values = defaults
                let config = try #require(run["config"]?.objectValue)
                for (key, value) in config { values[key] = value }
                let steps = try #require(run["steps"]?.integerValue)
                let schedule = run["schedule"]?.stringValue.flatMap { SigmaSchedule(rawValue: $0) }
                let eta = run["eta"]?.doubleValue
                let samples = run["samples"]?.doubles ?? []
                return SamplerCase(
                    name:
                        "\(sampler) \(JSONValue.object(config)) \(schedule.map { "\($0)" } ?? "") \(eta.map { "eta \($0)" } ?? "") \(steps) steps",
                    sampler: sampler,
                    setup: try SamplerSetup(
                        sampler,
                        configuration: try SchedulerConfiguration(
                            file: ConfigurationFile(path: "scheduler_config.json", values: values)
                        ),
                        steps: steps,
                        schedule: schedule,
                        eta: eta
                    ),
                    timesteps: run["timesteps"]?.doubles ?? [],
                    sigmas: run["sigmas"]?.doubles ?? [],
                    samples: stride(from: 0, to: samples.count, by: first.count).map {
                        Array(samples[$0..<($0 + first.count)])
                    }
                )
            }
        )
    }
}

@Suite struct SamplerTests {
    /// How far a sample may be from diffusers', relative to the largest of its numbers.
    ///
    /// Twice the most that is seen, in small samples which are the difference of large ones: PyTorch's square roots and NumPy's logarithms of 32
    /// bits are some units off the nearest.
    private let tolerance = 7e-6

    @Test(arguments: Sampler.allCases)
    func matchesDiffusersAfterEveryEvaluation(_ sampler: Sampler) throws {
        let (first, cases) = try SamplerCase.all(sampler)
        #expect(cases.count >= 25)
        for item in cases {
            let program = try item.setup.program()
            #expect(program.steps.count == item.setup.steps)
            let evaluations = program.evaluations
            try #require(evaluations.count == item.timesteps.count, "\(item.name)")
            for (evaluation, expected) in zip(evaluations, item.timesteps) {
                // Fractional timesteps are rounded to 32 bits by some schedulers.
                #expect(abs(evaluation.timestep - expected) <= 1e-4, "timesteps of \(item.name)")
            }

            // The noise levels are what the model's input is scaled by.
            for (evaluation, expected) in zip(evaluations, item.sigmas)
            where evaluations.count == item.sigmas.count - 1 && evaluation.inputScale != 1 {
                let sigma = (1 / (evaluation.inputScale * evaluation.inputScale) - 1).squareRoot()
                #expect(abs(sigma - expected) <= tolerance * expected, "noise levels of \(item.name)")
            }

            let samples = runOnNumbers(program, first: first)
            try #require(samples.count == item.samples.count)
            for (index, (sample, expected)) in zip(samples, item.samples).enumerated() {
                let scale = expected.map { abs($0) }.max() ?? 0
                let error = zip(sample, expected).map { abs($0 - $1) }.max() ?? .infinity
                try #require(
                    error <= tolerance * scale,
                    "evaluation \(index) of \(item.name): \(sample) instead of \(expected)"
                )
            }
        }
    }

    /// The samples after every evaluation, with what stands for model and noise in scripts/fixtures/samplers.py.
    private func runOnNumbers(_ program: SamplerProgram, first: [Double]) -> [[Double]] {
        var samples: [[Double]] = []
        var index = 0
        var draws = 0
        var run = SamplerRun(program, first: first.map { $0 * program.initNoiseSigma })
        for _ in program.steps {
            run.step(
                evaluate: { sample, evaluation, _ in
                    // The last sample of an evaluation is given to the next.
                    if index > 0 { samples.append(sample) }
                    defer { index += 1 }
                    return sample.enumerated().map { position, value in
                        sin(0.1 * Double(index) + 0.7 * Double(position) + 0.003 * evaluation.timestep)
                            + 0.1 * evaluation.inputScale * value
                    }
                },
                combine: weightedSum,
                noise: {
                    defer { draws += 1 }
                    return first.indices.map { 1.2 * cos(1.3 * Double(draws) + 0.9 * Double($0)) }
                },
                settle: { sample, _ in sample }
            )
        }
        return samples + [run.latents]
    }

    // MARK: Programs

    @Test(arguments: Sampler.allCases, [1, 2, 3, 14, 15, 50])
    func keepsFewValues(_ sampler: Sampler, _ steps: Int) throws {
        let program = try SamplerSetup(sampler, configuration: SchedulerConfiguration(), steps: steps).program()
        #expect(program.steps.count == steps)
        // Linear multistep keeps four slopes; UniPC what its two earlier pictures are made of.
        #expect((1...6).contains(program.mostHeld.values))
        let terms = program.evaluations.flatMap(\.results).map(\.terms.count).max() ?? 0
        #expect((1...8).contains(terms))
    }

    /// k-diffusion's `eta`, which diffusers does not have for these: without any noise they are what they add noise to.
    @Test(
        arguments: [
            (Sampler.eulerAncestral, Sampler.euler), (.dpm2Ancestral, .dpm2), (.dpmpp2MSDE, .dpmpp2M),
        ]
    )
    func withoutNoiseAreThePlainForms(noisy: Sampler, plain: Sampler) throws {
        let configuration = SchedulerConfiguration()
        let without = try SamplerSetup(noisy, configuration: configuration, steps: 7, eta: 0).program()
        let expected = try SamplerSetup(plain, configuration: configuration, steps: 7).program()
        let some = try SamplerSetup(noisy, configuration: configuration, steps: 7, eta: 0.5).program()
        func draws(_ program: SamplerProgram) -> Int {
            Set(program.evaluations.flatMap(\.results).flatMap(\.terms).map(\.operand)).count { operand in
                if case .noise = operand { true } else { false }
            }
        }
        #expect(draws(without) == 0 && draws(expected) == 0 && draws(some) == 6)
        for (sample, reference) in zip(
            runOnNumbers(without, first: [1, -2]),
            runOnNumbers(expected, first: [1, -2])
        ) {
            #expect(zip(sample, reference).allSatisfy { abs($0 - $1) <= 1e-12 * max(1, abs($1)) })
        }
    }

    @Test func drawsWhatIsMultipliedByZeroWhereOthersFollow() {
        var builder = SamplerProgramBuilder(initNoiseSigma: 1)
        var x = builder.firstSample
        for factor in [0.0, 1.0, 0.0] {
            _ = builder.evaluate(x, at: 0, sigma: 1)
            x = builder.keep(x + factor * builder.noise())
            builder.endStep()
        }
        var draws: [Double] = []
        var run = SamplerRun(builder.program, first: 0.0)
        for _ in 0..<3 {
            run.step(
                evaluate: { _, _, _ in 0 },
                combine: { $0.reduce(0) { $0 + $1.coefficient * $1.value } },
                noise: {
                    draws.append(Double(draws.count + 1))
                    return Double(draws.count)
                },
                settle: { sample, _ in sample }
            )
        }
        #expect(draws == [1, 2])
        #expect(run.latents == 2)
    }

    // MARK: What is refused

    private func field(_ body: () throws -> Void) throws -> String {
        let error = try #require(throws: GenerationError.self) { try body() }
        guard case .invalid(let field, let reason) = error else { throw error }
        #expect(!reason.isEmpty)
        return field
    }

    @Test(
        arguments: [
            (Sampler.pndm, SchedulerConfiguration.PredictionType.sample), (.eulerAncestral, .sample), (.dpm2, .sample),
            (.dpm2Ancestral, .sample), (.dpmppSDE, .sample),
        ]
    )
    func refusesPredictionsASamplerCannotUse(
        sampler: Sampler,
        prediction: SchedulerConfiguration.PredictionType
    ) throws {
        var configuration = SchedulerConfiguration()
        configuration.predictionType = prediction
        #expect(
            try field { _ = try SamplerSetup(sampler, configuration: configuration, steps: 5) } == "sampler"
        )
    }

    @Test func refusesSchedulesSpacingsAndNoiseASamplerDoesNotHave() throws {
        let configuration = SchedulerConfiguration()
        for sampler in [Sampler.ddim, .pndm, .lcm, .tcd] {
            for schedule in [SigmaSchedule.karras, .exponential, .beta] {
                let refused = try field {
                    _ = try SamplerSetup(sampler, configuration: configuration, steps: 5, schedule: schedule)
                }
                #expect(refused == "schedule")
            }
        }
        #expect(
            try field {
                _ = try SamplerSetup(.lcm, configuration: configuration, steps: 5, spacing: .trailing)
            } == "spacing"
        )
        for (sampler, eta) in [
            (Sampler.euler, 0.5), (.dpmpp2M, 1), (.lcm, 0.1), (.ddim, -0.1), (.ddim, 1.1), (.tcd, .nan),
        ] {
            #expect(
                try field { _ = try SamplerSetup(sampler, configuration: configuration, steps: 5, eta: eta) } == "eta"
            )
        }
        _ = try SamplerSetup(.euler, configuration: configuration, steps: 5, eta: 0)
        #expect(try field { _ = try SamplerSetup(.lcm, configuration: configuration, steps: 51) } == "steps")
    }

    @Test func refusesMoreStepsThanThereAreNoiseLevels() throws {
        let configuration = SchedulerConfiguration()
        for sampler in [Sampler.dpmpp2M, .unipc, .deis] {
            #expect(
                try field { _ = try SamplerSetup(sampler, configuration: configuration, steps: 1000).program() }
                    == "steps"
            )
        }
        // One evaluation for each timestep of training.
        for sampler in [Sampler.ddim, .pndm, .euler, .heun, .lms] {
            #expect(try SamplerSetup(sampler, configuration: configuration, steps: 1000).program().steps.count == 1000)
        }
    }

    // MARK: Checkpoints

    @Test func takesScheduleAndSpacingFromTheCheckpointWhereTheSamplerKnowsThem() throws {
        var configuration = SchedulerConfiguration()
        configuration.schedule = .karras
        configuration.timestepSpacing = .trailing
        func setup(_ sampler: Sampler, _ schedule: SigmaSchedule? = nil) throws -> SamplerSetup {
            try SamplerSetup(sampler, configuration: configuration, steps: 4, schedule: schedule)
        }
        #expect(try setup(.dpmpp2M).schedule == .karras)
        #expect(try setup(.dpmpp2M, .uniform).schedule == .uniform)
        for sampler in [Sampler.ddim, .eulerAncestral, .lcm] { #expect(try setup(sampler).schedule == .uniform) }
        #expect(try setup(.eulerAncestral, .karras).schedule == .karras)
        // As SD-Turbo is drawn.
        #expect(try setup(.eulerAncestral).program().evaluations.map(\.timestep) == [999, 749, 499, 249])
    }

    // MARK: Names

    @Test(
        arguments: [
            ("dpmpp_2m_karras", Sampler.dpmpp2M, SigmaSchedule.karras), ("DPM++ 2M Karras", .dpmpp2M, .karras),
            ("k_dpmpp_2m_ka", .dpmpp2M, .karras), ("dpm++ 2m", .dpmpp2M, nil), ("dpm++2m", .dpmpp2M, nil),
            ("dpmpp_2m_k", .dpmpp2M, .karras), ("DPM++ 2M SDE Exponential", .dpmpp2MSDE, .exponential),
            ("k_dpmpp_2m_sde_exp", .dpmpp2MSDE, .exponential), ("DPM++ 2M SDE", .dpmpp2MSDE, nil),
            ("DPM++ SDE Karras", .dpmppSDE, .karras), ("k_dpmpp_sde", .dpmppSDE, nil),
            ("DPM++ 2S a Karras", .dpmpp2SAncestral, .karras), ("k_dpmpp_2s_a", .dpmpp2SAncestral, nil),
            ("Euler a", .eulerAncestral, nil), ("k_euler_a", .eulerAncestral, nil),
            ("euler_ancestral", .eulerAncestral, nil),
            ("k_euler_ancestral", .eulerAncestral, nil), ("EULER", .euler, nil), ("k_euler", .euler, nil),
            ("Euler Beta", .euler, .beta), ("k_heun", .heun, nil), ("DPM2", .dpm2, nil), ("k_dpm_2", .dpm2, nil),
            ("DPM2 a Karras", .dpm2Ancestral, .karras), ("k_dpm_2_a_ka", .dpm2Ancestral, .karras),
            ("kdpm_2_a", .dpm2Ancestral, nil),
            ("LMS Karras", .lms, .karras), ("k_lms_ka", .lms, .karras), ("PLMS", .pndm, nil), ("UniPC", .unipc, nil),
            ("deis_k", .deis, .karras), ("LCM", .lcm, nil), ("tcd", .tcd, nil), ("DDIM", .ddim, nil),
            ("EulerAncestralDiscreteScheduler", .eulerAncestral, nil), ("ddim_uniform", .ddim, .uniform),
        ] as [(String, Sampler, SigmaSchedule?)]
    )
    func understandsNamesOfOtherPrograms(name: String, sampler: Sampler, schedule: SigmaSchedule?) {
        #expect(SamplerName(name) == SamplerName(sampler, schedule: schedule))
    }

    @Test(
        arguments: [
            "", "k", "karras", "k_", "foo", "dpm", "DPM++ 3M SDE", "DPM fast", "DPM adaptive", "Restart", "DDIM CFG++",
            "euler karras karras", String(repeating: "a", count: 10_000), "Euler à",
        ]
    )
    func knowsNoOtherNames(name: String) {
        #expect(SamplerName(name) == nil)
    }

    @Test func everyCanonicalAndWebUINameIsUnderstood() {
        for sampler in Sampler.allCases {
            #expect(SamplerName(sampler.rawValue) == SamplerName(sampler))
            #expect(SamplerName(sampler.webUIName) == SamplerName(sampler))
            for schedule in SigmaSchedule.allCases {
                let expected = SamplerName(sampler, schedule: schedule)
                #expect(SamplerName("\(sampler.rawValue)_\(schedule.rawValue)") == expected)
                #expect(SamplerName("\(sampler.webUIName) \(schedule.webUIName)") == expected)
            }
        }
    }

    // MARK: Numbers

    @Test func betaQuantilesMatchScipy() {
        // scipy.stats.beta.ppf(p, 0.6, 0.6)
        let expected: [(Double, Double)] = [
            (0, 0), (0.001, 1.855873851745199e-05), (0.02, 0.002732982024577027), (0.25, 0.17568037865269498),
            (0.5, 0.5),
            (0.7, 0.7659829961247643), (0.999, 0.9999814412614826), (1, 1),
        ]
        for (probability, quantile) in expected {
            #expect(abs(betaQuantile(probability, shape: 0.6) - quantile) <= 1e-12 * quantile)
        }
    }
}

// The DDIM sampler against diffusers 0.42.1 (Tests/Fixtures/ddim.json), and the corrections of its Stable Diffusion
// pipeline.

import Foundation
import JSON
@testable import StableDiffusion
import TestSupport
import Testing

/// One configuration and number of steps of the fixture.
struct SchedulerCase: CustomTestStringConvertible, Sendable {
    let config: JSONObject
    let steps: Int
    let timesteps: [Int]
    let alphasCumprodBits: [Int]
    let trajectory: [JSONValue]

    var testDescription: String {
        let parts = ["prediction_type", "timestep_spacing", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"]
            .compactMap { key in config[key].map { "\(key)=\($0)" } }
        return "\(steps) steps, " + parts.joined(separator: ", ")
    }

    static func all() throws -> (first: [Double], cases: [SchedulerCase]) {
        let fixture = try Fixture.json("ddim.json")
        let cases = try #require(fixture["cases"]?.arrayValue).map { value in
            SchedulerCase(
                config: try #require(value["config"]?.objectValue),
                steps: try #require(value["steps"]?.integerValue),
                timesteps: value["timesteps"]?.integers ?? [],
                alphasCumprodBits: value["alphas_cumprod_bits"]?.integers ?? [],
                trajectory: value["trajectory"]?.arrayValue ?? []
            )
        }
        return (fixture["first"]?.doubles ?? [], cases)
    }
}

@Suite struct SchedulerTests {
    private func configuration(_ values: JSONObject) throws -> SchedulerConfiguration {
        try SchedulerConfiguration(file: ConfigurationFile(path: "scheduler_config.json", values: values))
    }

    @Test func matchesDiffusersInEveryConfiguration() throws {
        let (first, cases) = try SchedulerCase.all()
        #expect(cases.count > 80)
        for item in cases {
            let configuration = try configuration(item.config)
            let program = try SamplerSetup(.ddim, configuration: configuration, steps: item.steps).program()
            #expect(program.evaluations.map { Int($0.timestep) } == item.timesteps, "\(item.testDescription)")
            #expect(program.steps.allSatisfy { $0.count == 1 && $0[0].inputScale == 1 && $0[0].results.count == 1 })

            // Bit for bit, except that PyTorch's vectorised square root, which only the rescaling uses on a whole
            // schedule, is up to one unit off the nearest float.
            let alphas = NoiseSchedule(configuration).alphasCumprod
            let indices = [0, alphas.count / 3, alphas.count - 2, alphas.count - 1]
            for (index, bits) in zip(indices, item.alphasCumprodBits) {
                let expected = Float(bitPattern: UInt32(bits))
                let tolerance = configuration.rescaleBetasZeroSNR ? expected * 1e-6 : 0
                #expect(abs(alphas[index] - expected) <= tolerance, "timestep \(index) of \(item.testDescription)")
            }

            var run = SamplerRun(program, first: first)
            var expected = item.trajectory[...]
            for index in program.steps.indices {
                run.step(
                    evaluate: { sample, _, _ in
                        sample.indices.map { sin(0.1 * Double(index) + 0.7 * Double($0)) }
                    },
                    combine: weightedSum,
                    noise: {
                        Issue.record("DDIM without eta draws no noise")
                        return first
                    },
                    settle: { sample, _ in sample }
                )
                guard let next = expected.first, next["step"]?.integerValue == index else { continue }
                expected.removeFirst()
                let reference = next["sample"]?.doubles ?? []
                // diffusers rounds the square roots of each step to 32 bits, which adds up over the steps.
                let tolerance = 1e-6 + 6e-8 * Double(item.steps)
                let scale = reference.map { abs($0) }.max() ?? 0
                let sample = run.latents
                let error = zip(sample, reference).map { abs($0 - $1) }.max() ?? .infinity
                #expect(error <= tolerance * scale, "step \(index) of \(item.testDescription): \(sample), \(reference)")
            }
            #expect(expected.isEmpty)
        }
    }

    @Test func spacesExactlyAsManyStepsAsAskedFor() throws {
        for spacing in TimestepSpacing.allCases {
            for count in Array(1...60) + Array(stride(from: 61, through: 1000, by: 13)) + [999, 1000] {
                for timesteps in [
                    spacing.timesteps(count, of: 1000, offset: 1, isRounded: true),
                    spacing.timesteps(count, of: 1000, offset: 1, isRounded: false),
                    spacing.multistepTimesteps(count, of: 1000, offset: 1),
                ] {
                    #expect(timesteps.count == count)
                    #expect(timesteps.allSatisfy { 0..<1000 ~= $0 }, "\(spacing), \(count) steps")
                    #expect(zip(timesteps, timesteps.dropFirst()).allSatisfy { $0 >= $1 }, "\(spacing), \(count) steps")
                }
            }
        }
    }

    @Test(arguments: [0, -1, 1001, Int.max, Int.min])
    func refusesNumbersOfStepsTheModelHasNoRoomFor(steps: Int) {
        #expect(throws: GenerationError.self) {
            try SamplerSetup(.ddim, configuration: SchedulerConfiguration(), steps: steps)
        }
    }

    /// diffusers writes the default of DPM-Solver's limit as Python prints it.
    @Test func readsFilesWithPythonsInfinity() throws {
        let directory = try TemporaryDirectory()
        try directory.write("{\"lambda_min_clipped\": -Infinity, \"use_karras_sigmas\": true}", to: "s.json")
        let read = try SchedulerConfiguration(file: ConfigurationFile(path: directory.path + "/s.json"))
        #expect(read.schedule == .karras)
    }

    @Test func correctsOldFilesAsTheStableDiffusionPipelineDoes() throws {
        let old = try configuration(["steps_offset": 0, "clip_sample": .bool(true)])
        #expect(try SamplerSetup(.ddim, configuration: old, steps: 50).program().evaluations.first?.timestep == 981)
    }

    @Test func takesTheScheduleFromFilesOfOtherSchedulers() throws {
        let pndm = try configuration([
            "_class_name": .string("PNDMScheduler"), "beta_start": 0.00085, "beta_end": 0.012,
            "beta_schedule": .string("scaled_linear"), "skip_prk_steps": .bool(true), "trained_betas": .null,
            "set_alpha_to_one": .bool(false), "steps_offset": 1,
        ])
        #expect(pndm.betaSchedule == .scaledLinear)
        #expect(pndm.setAlphaToOne == false)
        #expect(pndm.predictionType == .epsilon)
        #expect(pndm.timestepSpacing == nil)
    }

    @Test(
        arguments: [
            (["_class_name": "FlowMatchEulerDiscreteScheduler"], "_class_name"),
            (["thresholding": true], "thresholding"),
            (["beta_schedule": "exp"], "beta_schedule"),
            (["prediction_type": "flow_prediction"], "prediction_type"),
            (["timestep_spacing": "random"], "timestep_spacing"),
            (["num_train_timesteps": 0], "num_train_timesteps"),
            (["trained_betas": [0.5]], "trained_betas"),
            (["rescale_betas_zero_snr": true], "prediction_type"),
            (["beta_start": 0, "prediction_type": "sample"], "prediction_type"),
            (["beta_end": 2], "beta_end"),
            (["use_lu_lambdas": true], "use_lu_lambdas"),
            (["interpolation_type": "log_linear"], "interpolation_type"),
            (["timestep_type": "continuous"], "timestep_type"),
            (["final_sigmas_type": "half"], "final_sigmas_type"),
            (["use_karras_sigmas": true, "use_beta_sigmas": true], "use_beta_sigmas"),
            (["lambda_min_clipped": -5.1], "lambda_min_clipped"),
            (["original_inference_steps": 0], "original_inference_steps"),
        ] as [(JSONObject, String)]
    )
    func refusesWhatItDoesNotCompute(values: JSONObject, key: String) throws {
        let error = try #require(throws: ConfigurationFileError.self) { try configuration(values) }
        #expect(error.key == key)
        #expect(error.description.contains("scheduler_config.json"))
    }
}

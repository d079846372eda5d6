// What a sampling algorithm comes to once its timesteps are known: which samples the model is given at which timesteps, and
// how each new sample is a linear combination of earlier samples, earlier outputs of the model and fresh noise. All
// coefficients are computed before the first step, in double precision; whoever runs the program has only to add.

/// A sampling algorithm set up for one model, one number of steps and one schedule, in single-assignment form.
///
/// Samples, outputs and draws of noise are numbered from 0 in the order in which they come about. Sample 0 is Gaussian noise
/// times `initNoiseSigma`; evaluation i of the model makes output i, after guidance; every combination makes the next sample.
struct SamplerProgram: Sendable, Equatable {
    /// A value of the program.
    enum Operand: Sendable, Hashable {
        /// Latents on their way from noise to picture.
        case sample(Int)
        /// What the model made of a sample, after guidance.
        case output(Int)
        /// Standard Gaussian noise; draw i comes after draw i - 1 from the generator of the initial noise.
        case noise(Int)
    }

    /// One evaluation of the model, and what is computed from everything known after it.
    struct Evaluation: Sendable, Equatable {
        /// The sample the model is given.
        var sample: Int
        /// The timestep the model is told, within `0 ..< numTrainTimesteps`, not necessarily whole.
        var timestep: Double
        /// The sample is multiplied by this before the model sees it.
        var inputScale: Double
        /// How much of the sample is picture and how much noise.
        var level: NoiseLevel
        /// The samples made after it, in order; the model is given the last of them next.
        var results: [Combination] = []
    }

    /// One step as the person who asked counts them: one evaluation, or several in algorithms of higher order.
    typealias Step = [Evaluation]

    /// The first sample is Gaussian noise multiplied by this.
    var initNoiseSigma: Double
    /// The steps, as many as were asked for.
    var steps: [Step] = []

    /// All evaluations in order.
    var evaluations: [Evaluation] { steps.flatMap(\.self) }

    /// Whether every number is one; sums of steps too close to each other divide by zero.
    var isFinite: Bool {
        initNoiseSigma.isFinite
            && evaluations.allSatisfy { evaluation in
                evaluation.inputScale.isFinite
                    && evaluation.results.allSatisfy { $0.terms.allSatisfy(\.coefficient.isFinite) }
            }
    }

    /// By operand, the number of the last evaluation after which it is read.
    fileprivate var lastUses: [Operand: Int] {
        var uses: [Operand: Int] = [:]
        for (index, evaluation) in evaluations.enumerated() {
            uses[.sample(evaluation.sample)] = index
            for term in evaluation.results.flatMap(\.terms) { uses[term.operand] = index }
        }
        return uses
    }

    /// The most values that are kept while the model runs, the sample it is given among them, and the first step during which they are.
    var mostHeld: (step: Int, values: Int) {
        var run = SamplerRun<Void>(self, first: ())
        var most = (step: 0, values: 0)
        for step in steps.indices {
            run.step(
                evaluate: { _, _, count in if count > most.values { most = (step, count) } },
                combine: { _ in },
                noise: {},
                settle: { _, _ in }
            )
        }
        return most
    }
}

/// A sum of values of a program, each with a factor: what the formulas of a sampler are written with.
///
/// Only those a program is told to keep are ever computed; all others end as coefficients.
struct Combination: Sendable, Equatable {
    /// A value and its factor.
    struct Term: Sendable, Equatable {
        /// The value.
        var operand: SamplerProgram.Operand
        /// Its factor.
        var coefficient: Double
    }

    /// At most one term for each value, none with the factor 0.
    private(set) var terms: [Term]

    /// One value.
    init(_ operand: SamplerProgram.Operand) {
        terms = [Term(operand: operand, coefficient: 1)]
    }

    static func + (left: Combination, right: Combination) -> Combination {
        var result = left
        for term in right.terms {
            if let index = result.terms.firstIndex(where: { $0.operand == term.operand }) {
                result.terms[index].coefficient += term.coefficient
            } else {
                result.terms.append(term)
            }
        }
        result.terms.removeAll { $0.coefficient == 0 }
        return result
    }

    static func - (left: Combination, right: Combination) -> Combination {
        left + -1 * right
    }

    static func * (factor: Double, combination: Combination) -> Combination {
        var result = combination
        for index in result.terms.indices { result.terms[index].coefficient *= factor }
        result.terms.removeAll { $0.coefficient == 0 }
        return result
    }

    static func / (combination: Combination, divisor: Double) -> Combination {
        (1 / divisor) * combination
    }
}

/// Writes a program down as its algorithm would run.
struct SamplerProgramBuilder {
    private(set) var program: SamplerProgram
    private var step: SamplerProgram.Step = []
    private var samples = 1
    private var outputs = 0
    private var noises = 0

    /// A program without any steps yet.
    init(initNoiseSigma: Double) {
        program = SamplerProgram(initNoiseSigma: initNoiseSigma)
    }

    /// The sample that everything begins with.
    var firstSample: Combination { Combination(.sample(0)) }

    /// Lets the model run; the result is its output.
    ///
    /// - Parameters:
    ///   - sample: what `firstSample` or `keep` returned (traps otherwise).
    ///   - timestep: what the model is told.
    ///   - level: how much of the sample is picture and how much noise.
    mutating func evaluate(_ sample: Combination, at timestep: Double, level: NoiseLevel) -> Combination {
        evaluate(sample, at: timestep, inputScale: 1, level: level)
    }

    /// Lets the model run on a sample x = x_0 + σ ε, of which it sees what is scaled to a variance of about 1.
    mutating func evaluate(_ sample: Combination, at timestep: Double, sigma: Double) -> Combination {
        let inputScale = 1 / (sigma * sigma + 1).squareRoot()
        return evaluate(sample, at: timestep, inputScale: inputScale, level: NoiseLevel(signal: 1, noise: sigma))
    }

    private mutating func evaluate(
        _ sample: Combination,
        at timestep: Double,
        inputScale: Double,
        level: NoiseLevel
    ) -> Combination {
        guard sample.terms.count == 1, let term = sample.terms.first, case .sample(let index) = term.operand,
            term.coefficient == 1
        else { preconditionFailure("the model is given \(sample), which is no sample") }
        step.append(
            SamplerProgram.Evaluation(sample: index, timestep: timestep, inputScale: inputScale, level: level)
        )
        outputs += 1
        return Combination(.output(outputs - 1))
    }

    /// Fresh noise.
    mutating func noise() -> Combination {
        noises += 1
        return Combination(.noise(noises - 1))
    }

    /// Has a combination computed after the latest evaluation; the result stands for the sample it becomes.
    mutating func keep(_ combination: Combination) -> Combination {
        step[step.count - 1].results.append(combination)
        samples += 1
        return Combination(.sample(samples - 1))
    }

    /// Ends a step as the person who asked counts them.
    mutating func endStep() {
        program.steps.append(step)
        step = []
    }
}

/// A program being run on values of any kind: tensors on a device, or plain numbers.
///
/// A value is let go of after its last use.
struct SamplerRun<Value> {
    private let program: SamplerProgram
    private let lastUses: [SamplerProgram.Operand: Int]
    /// Of the sample of each evaluation.
    private let levels: [NoiseLevel]
    /// In the order in which they came about, and are let go of: memory that is reused in another order may not suffice.
    private var values: [(operand: SamplerProgram.Operand, value: Value)]
    private var samples = 1
    private var noises = 0
    private var evaluations = 0
    /// Steps done.
    private(set) var completedSteps = 0
    /// The latest sample; the next step goes on from what is put in its place.
    var latents: Value { didSet { keep(latents, as: .sample(samples - 1)) } }

    /// A run from its first sample.
    init(_ program: SamplerProgram, first: Value) {
        self.program = program
        lastUses = program.lastUses
        levels = program.evaluations.map(\.level)
        values = [(.sample(0), first)]
        latents = first
    }

    private func value(_ operand: SamplerProgram.Operand) -> Value? {
        values.first { $0.operand == operand }?.value
    }

    private mutating func keep(_ value: Value, as operand: SamplerProgram.Operand) {
        if let index = values.firstIndex(where: { $0.operand == operand }) {
            values[index].value = value
        } else {
            values.append((operand, value))
        }
    }

    /// Runs the next step; there must be one (traps).
    ///
    /// - Parameters:
    ///   - evaluate: gives a sample to the model; told as well how many values are being kept.
    ///   - combine: adds values, each multiplied by its factor.
    ///   - noise: draws Gaussian noise.
    ///   - settle: what becomes of the latest sample once an evaluation has been done; told the level of noise of the next, nil after the last.
    mutating func step<Failure: Error>(
        evaluate: (Value, SamplerProgram.Evaluation, _ heldValues: Int) throws(Failure) -> Value,
        combine: ([(coefficient: Double, value: Value)]) throws(Failure) -> Value,
        noise: () throws(Failure) -> Value,
        settle: (Value, NoiseLevel?) throws(Failure) -> Value
    ) throws(Failure) {
        for evaluation in program.steps[completedSteps] {
            guard let sample = value(.sample(evaluation.sample)) else { preconditionFailure("a sample is missing") }
            keep(try evaluate(sample, evaluation, values.count), as: .output(evaluations))
            for result in evaluation.results {
                var terms: [(coefficient: Double, value: Value)] = []
                for term in result.terms {
                    // What a sampler draws and multiplies by zero is drawn all the same where other draws follow.
                    if case .noise(let index) = term.operand {
                        while noises <= index {
                            keep(try noise(), as: .noise(noises))
                            noises += 1
                        }
                    }
                    guard let value = value(term.operand) else { preconditionFailure("\(term) is missing") }
                    terms.append((term.coefficient, value))
                }
                let sample = try combine(terms)
                samples += 1
                latents = sample
            }
            for index in values.indices.reversed() where lastUses[values[index].operand] ?? -1 <= evaluations {
                values.remove(at: index)
            }
            evaluations += 1
            latents = try settle(latents, evaluations < levels.count ? levels[evaluations] : nil)
        }
        completedSteps += 1
    }
}

// What samplers are called elsewhere: AUTOMATIC1111's web UI and its aliases, k-diffusion, InvokeAI, diffusers' classes. Names of
// samplers with a schedule in them, such as "DPM++ 2M Karras", are taken apart here and nowhere else.

/// A sampler by any of its names, with the schedule that the name asks for.
public struct SamplerName: Sendable, Equatable {
    /// The sampler.
    public let sampler: Sampler
    /// The schedule in the name, if there is one.
    public let schedule: SigmaSchedule?

    /// A sampler with or without a schedule.
    public init(_ sampler: Sampler, schedule: SigmaSchedule? = nil) {
        self.sampler = sampler
        self.schedule = schedule
    }

    /// Reads a name, in any case: `dpmpp_2m_karras`, `DPM++ 2M Karras`, `k_dpmpp_2m_ka`; nil for one nobody uses.
    public init?(_ name: String) {
        // No name is as long; what is, need not be looked at.
        guard name.utf8.count <= 64, name.allSatisfy(\.isASCII) else { return nil }
        let plain = name.lowercased().replacing("++", with: "pp")
        var words = plain.split { !($0.isLetter || $0.isNumber) }.map(String.init)
        if let sampler = Self.classes[words.joined()] {
            self.init(sampler)
            return
        }
        if words.count > 1, words.first == "k" || words.first == "sample" { words.removeFirst() }
        var schedule: SigmaSchedule?
        if words.count > 1, let last = words.last, let named = Self.schedules[last] {
            schedule = named
            words.removeLast()
        }
        guard let sampler = Self.samplers[words.joined()] else { return nil }
        self.init(sampler, schedule: schedule)
    }

    /// Last words of names that stand for a schedule.
    private static let schedules: [String: SigmaSchedule] = [
        "uniform": .uniform, "karras": .karras, "ka": .karras, "k": .karras, "exponential": .exponential,
        "exp": .exponential, "beta": .beta,
    ]

    /// Names without what separates their words.
    private static let samplers: [String: Sampler] = {
        var names: [String: Sampler] = [
            "plms": .pndm, "eulerancestral": .eulerAncestral, "dpm2ancestral": .dpm2Ancestral, "kdpm2": .dpm2,
            "kdpm2a": .dpm2Ancestral, "dpmpp2sancestral": .dpmpp2SAncestral, "dpmpp2s": .dpmpp2SAncestral,
        ]
        for sampler in Sampler.allCases { names[sampler.rawValue.filter { $0 != "_" }] = sampler }
        return names
    }()

    /// diffusers' classes.
    private static let classes: [String: Sampler] = [
        "ddimscheduler": .ddim, "pndmscheduler": .pndm, "eulerdiscretescheduler": .euler,
        "eulerancestraldiscretescheduler": .eulerAncestral, "heundiscretescheduler": .heun,
        "kdpm2discretescheduler": .dpm2, "kdpm2ancestraldiscretescheduler": .dpm2Ancestral,
        "lmsdiscretescheduler": .lms, "dpmsolvermultistepscheduler": .dpmpp2M, "dpmsolversdescheduler": .dpmppSDE,
        "unipcmultistepscheduler": .unipc, "deismultistepscheduler": .deis, "lcmscheduler": .lcm,
        "tcdscheduler": .tcd,
    ]
}

extension Sampler {
    /// The name in AUTOMATIC1111's web UI, or in its manner where it has none.
    public var webUIName: String {
        switch self {
        case .ddim: "DDIM"
        case .pndm: "PLMS"
        case .euler: "Euler"
        case .eulerAncestral: "Euler a"
        case .heun: "Heun"
        case .dpm2: "DPM2"
        case .dpm2Ancestral: "DPM2 a"
        case .lms: "LMS"
        case .dpmpp2M: "DPM++ 2M"
        case .dpmpp2MSDE: "DPM++ 2M SDE"
        case .dpmppSDE: "DPM++ SDE"
        case .dpmpp2SAncestral: "DPM++ 2S a"
        case .unipc: "UniPC"
        case .deis: "DEIS"
        case .lcm: "LCM"
        case .tcd: "TCD"
        }
    }
}

extension SigmaSchedule {
    /// A schedule by its name in any case, as the web UI's labels have it.
    public init?(name: String) {
        self.init(rawValue: name.lowercased())
    }

    /// The label in AUTOMATIC1111's web UI.
    public var webUIName: String { rawValue.prefix(1).uppercased() + rawValue.dropFirst() }
}

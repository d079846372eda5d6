// What is known of a job from the moment it is admitted: what was asked for, how far it is, what came of it.

public import Foundation
public import StableDiffusion

/// A picture that is made and kept.
public struct FinishedImage: Equatable, Sendable {
    /// Its id in the image store.
    public let id: UUID
    /// The seed of its noise.
    public let seed: Seed
    /// Seconds it took to make and keep it, without the time in the queue.
    public let seconds: Double
    /// The end of the prompt that the text encoder could not take in, if any was cut.
    public let truncatedPrompt: String?
}

/// A job and its state at one moment.
struct JobRecord: Equatable, Sendable {
    enum State: String, CaseIterable, Sendable {
        /// It waits for its turn.
        case queued
        /// Its pictures are being made.
        case running
        /// They are made and kept.
        case completed
        /// Something kept them from being made.
        case failed
        /// Nobody wants them any more.
        case cancelled

        /// Whether nothing will change any more.
        var isFinal: Bool { self != .queued && self != .running }
    }

    let id: UUID
    /// The first picture; without the pixels it was made from once the job is done, which would fill the memory.
    var request: GenerationRequest
    /// Pictures, each with the seed after the last one's.
    let count: Int
    let created: Date
    var state = State.queued
    var started: Date?
    var finished: Date?
    /// Steps that are done, of all pictures.
    var step = 0
    /// Steps of all pictures; nil before the first is prepared.
    var steps: Int?
    /// Those that are made and kept, also of a job that failed or was cancelled later.
    var images: [FinishedImage] = []
    /// Why there are not all.
    var failure: JobFailure?
    /// Counts changes from 1.
    var version = 1

    /// Jobs that are run before it; nil unless it waits.
    var position: Int?
    /// Seconds until it is done, about; nil while nothing is known, and when it is.
    var remainingSeconds: Double?
}

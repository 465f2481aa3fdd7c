internal import CaloraBindings

/// How likely one of several answers is.
public struct Choice: Sendable, Hashable {
    /// The answer.
    public let text: String
    /// Natural logarithm of the probability of its tokens after the prompt.
    public let logLikelihood: Double
    /// Its share among the choices, from 0 to 1; all shares add up to 1.
    public let probability: Double

    /// A choice with its scores.
    public init(text: String, logLikelihood: Double, probability: Double) {
        self.text = text
        self.logLikelihood = logLikelihood
        self.probability = probability
    }

    init(_ score: CaloraBindings.ChoiceScore) {
        self.init(text: score.choice, logLikelihood: score.logLikelihood, probability: score.probability)
    }
}

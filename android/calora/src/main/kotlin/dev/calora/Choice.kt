package dev.calora

/**
 * How likely one of several answers is ([Session.classify]).
 *
 * @property text the answer
 * @property logLikelihood natural logarithm of the probability of its tokens after the prompt
 * @property probability its share among the choices, from 0 to 1; all shares add up to 1
 */
public data class Choice(val text: String, val logLikelihood: Double, val probability: Double)

internal fun dev.calora.ffi.ChoiceScore.toApi() = Choice(choice, logLikelihood, probability)

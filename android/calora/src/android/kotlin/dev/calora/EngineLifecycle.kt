package dev.calora

import android.app.Activity
import android.app.Application
import android.os.Bundle
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.launch

/**
 * Pauses an engine while no activity of the app is visible, so that it takes no battery from other apps. Requests
 * wait, and go on when the app is back.
 *
 * ```
 * application.registerActivityLifecycleCallbacks(EngineLifecycle(engine, scope))
 * ```
 *
 * An app that answers from a foreground service does without this class.
 *
 * @param engine the engine
 * @param scope where it is paused
 */
public class EngineLifecycle(private val engine: Engine, private val scope: CoroutineScope) :
    Application.ActivityLifecycleCallbacks {
    private val visible = mutableSetOf<Activity>()

    /** Resumes the engine. */
    override fun onActivityStarted(activity: Activity) {
        visible += activity
        unlessClosed { engine.resume() }
    }

    /** Pauses the engine after the last activity; one that is only made anew, for a rotation say, does not count. */
    override fun onActivityStopped(activity: Activity) {
        visible -= activity
        if (visible.isNotEmpty() || activity.isChangingConfigurations) return
        // Undispatched: paused before a later start resumes.
        scope.launch(start = CoroutineStart.UNDISPATCHED) { unlessClosed { engine.pause() } }
    }

    /** Nothing depends on it. */
    override fun onActivityCreated(activity: Activity, savedInstanceState: Bundle?): Unit = Unit

    /** Nothing depends on it. */
    override fun onActivityResumed(activity: Activity): Unit = Unit

    /** Nothing depends on it. */
    override fun onActivityPaused(activity: Activity): Unit = Unit

    /** Nothing depends on it. */
    override fun onActivitySaveInstanceState(activity: Activity, outState: Bundle): Unit = Unit

    /** Nothing depends on it. */
    override fun onActivityDestroyed(activity: Activity) {
        visible -= activity
    }

    private inline fun unlessClosed(call: () -> Unit) {
        try {
            call()
        } catch (_: EngineException.Closed) {
            // A closed engine computes nothing anyway.
        }
    }
}

package dev.calora.assistant

import androidx.compose.foundation.layout.Arrangement
import androidx.compose.foundation.layout.Column
import androidx.compose.foundation.layout.ExperimentalLayoutApi
import androidx.compose.foundation.layout.FlowRow
import androidx.compose.foundation.layout.Row
import androidx.compose.foundation.layout.fillMaxSize
import androidx.compose.foundation.layout.fillMaxWidth
import androidx.compose.foundation.layout.padding
import androidx.compose.foundation.layout.safeDrawingPadding
import androidx.compose.foundation.rememberScrollState
import androidx.compose.foundation.text.selection.SelectionContainer
import androidx.compose.foundation.verticalScroll
import androidx.compose.material3.Button
import androidx.compose.material3.FilterChip
import androidx.compose.material3.LinearProgressIndicator
import androidx.compose.material3.MaterialTheme
import androidx.compose.material3.OutlinedTextField
import androidx.compose.material3.Text
import androidx.compose.material3.TextButton
import androidx.compose.runtime.Composable
import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableStateOf
import androidx.compose.runtime.saveable.rememberSaveable
import androidx.compose.runtime.setValue
import androidx.compose.ui.Modifier
import androidx.compose.ui.unit.dp

@Composable
fun LoadingScreen(loading: AssistantViewModel.Loading) {
    Column(Modifier.safeDrawingPadding().padding(24.dp), Arrangement.spacedBy(16.dp)) {
        LinearProgressIndicator({ loading.fraction.toFloat() }, Modifier.fillMaxWidth())
        Text(loading.problem ?: "Loading the model")
    }
}

/** Type, see which task answers, watch the answer come; tap another task to swap it in. */
@OptIn(ExperimentalLayoutApi::class)
@Composable
fun AssistantScreen(
    state: AssistantState,
    tasks: List<Task>,
    ask: (String, Task?) -> Unit,
    stop: () -> Unit,
    copyDiagnostics: () -> Unit,
) {
    var request by rememberSaveable { mutableStateOf("") }
    Column(
        Modifier.safeDrawingPadding().fillMaxSize().padding(24.dp).verticalScroll(rememberScrollState()),
        Arrangement.spacedBy(12.dp),
    ) {
        OutlinedTextField(request, { request = it }, Modifier.fillMaxWidth(), label = { Text("Say something") })
        Row(horizontalArrangement = Arrangement.spacedBy(12.dp)) {
            Button({ ask(request, null) }, enabled = request.isNotBlank()) { Text("Ask") }
            TextButton(stop, enabled = state.busy) { Text("Stop") }
        }
        FlowRow(horizontalArrangement = Arrangement.spacedBy(8.dp)) {
            for (task in tasks) {
                val choose = { ask(request, task) }
                FilterChip(state.task == task, choose, { Text(task.title) }, enabled = request.isNotBlank())
            }
        }
        val small = MaterialTheme.typography.labelSmall
        state.route?.let { Text("routed with ${(it.confidence * 100).toInt()} %", style = small) }
        SelectionContainer { Text(state.answer, style = MaterialTheme.typography.bodyLarge) }
        state.problem?.let { Text(it, color = MaterialTheme.colorScheme.error) }
        Text(state.figures, style = small)
        TextButton(copyDiagnostics) { Text("Copy diagnostics") }
    }
}
